"""Calls that somebody outside answers, in Postgres: parking a turn with them, claiming, answering."""

from __future__ import annotations

import datetime as dt
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from agent_backend.db.leases import Claim
from agent_backend.db.pool import Database
from agent_backend.db.sessions import CLAIM_COLUMNS
from agent_backend.errors import LeaseLost
from agent_backend.events import Cursor

_PARK = "SELECT park_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
_CLAIM = "SELECT claim_tool_call($1, $2, $3, $4)"
_ANSWER = (
    "SELECT r.status, r.woken, r.missing, "
    + CLAIM_COLUMNS.format("r.claim")
    + " FROM put_tool_result($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) r"
)
_READ = "SELECT * FROM read_tool_calls($1, $2, $3, $4)"

CallKind: TypeAlias = Literal["device", "approval"]
WaitingState: TypeAlias = Literal["waiting_device", "waiting_approval"]


class ParkedCall(NamedTuple):
    """A call to wait for; `input` is JSON text. A device must claim one with effects before it acts."""

    id: str
    name: str
    kind: CallKind
    effects: bool
    input: str


class Parking(NamedTuple):
    """One turn to park, ready to be sent, and sent again if the answer is lost."""

    session_id: UUID
    incarnation: UUID
    epoch: int
    turn_id: UUID
    first: int
    last: int
    events: bytes
    state: WaitingState
    timeout: float
    """Seconds until the calls expire, by the database's clock."""
    calls: list[ParkedCall]


class ToolCallRow(NamedTuple):
    """A call. `state` pending | claimed | answered | expired; `status` is set in the last two."""

    id: str
    turn_id: UUID
    name: str
    kind: CallKind
    effects: bool
    input: str
    state: str
    device: str | None
    status: str | None
    content: str | None
    created_at: dt.datetime
    expires_at: dt.datetime
    parked: Cursor
    """The position its turn was parked at: what follows is what the answers brought."""

    @property
    def is_open(self) -> bool:
        """Nobody has answered it, and it has not expired."""
        return self.status is None


class Answered(NamedTuple):
    """What became of an answer.

    `status` is answered | same | conflict | expired | not_claimed | not_found | consent_required, which
    `missing` goes with: purposes. `woken`: it was the last one its turn waited for. `claim` is set when this
    call took the session.
    """

    status: str
    woken: bool
    claim: Claim | None
    missing: list[str]


async def park(database: Database, parking: Parking) -> bool:
    """Park a turn and give its session back. Raises LeaseLost.

    Returns False, and has written nothing, when the turn was asked to stop.
    """
    columns = [list(column) for column in zip(*parking.calls, strict=True)]
    ids, names, kinds, effects, inputs = columns
    status = await database.fetchval(
        _PARK,
        *parking[:8],
        dt.timedelta(seconds=parking.timeout),
        ids,
        names,
        kinds,
        effects,
        inputs,
    )
    if status == "lost":
        raise LeaseLost
    return status == "parked"


async def claim_call(database: Database, user_id: UUID, session_id: UUID, call_id: str, device: str) -> str:
    """Let a device say that it will act; returns claimed | conflict | not_claimable | not_found."""
    return await database.fetchval(_CLAIM, user_id, session_id, call_id, device)


async def answer(
    database: Database,
    *,
    user_id: UUID,
    session_id: UUID,
    call_id: str,
    status: str,
    content: str | None,
    body_hash: bytes,
    device: str | None,
    incarnation: UUID,
    live: bool,
    dead: list[UUID],
    consents: str | None = None,
) -> Answered:
    """Take an answer; the turn it wakes is claimed in the same call where possible.

    `consents`: what it needs, as JSON (see `db.consents`); None: nothing.
    """
    row = await database.fetchrow(
        _ANSWER,
        user_id,
        session_id,
        call_id,
        status,
        content,
        body_hash,
        device,
        incarnation,
        live,
        dead,
        consents,
    )
    assert row is not None
    outcome, woken, missing, *claim = row
    return Answered(outcome, woken, Claim.of(tuple(claim)), missing)


async def read(
    database: Database,
    user_id: UUID,
    session_id: UUID,
    turn_id: UUID | None = None,
    ids: list[str] | None = None,
) -> list[ToolCallRow]:
    """Return a turn's calls, or those of the given ids, or (without either) those that wait for an answer."""
    rows = await database.fetch(_READ, user_id, session_id, turn_id, ids)
    return [ToolCallRow(*row[:12], parked=Cursor(*row[12:])) for row in rows]
