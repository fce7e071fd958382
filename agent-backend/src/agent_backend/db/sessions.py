"""Sessions, turns and messages in Postgres: one function call per operation."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from agent_backend.db.leases import Claim
from agent_backend.db.ledger import CallEnd
from agent_backend.db.pool import Connection, Database
from agent_backend.errors import LeaseLost
from agent_backend.events import Cursor
from agent_backend.sessions import FinalState
from agent_backend.transcript import StoredMessage

CLAIM_COLUMNS = (
    "({0}).session_id, ({0}).user_id, ({0}).agent, ({0}).agent_version, ({0}).epoch, ({0}).next_n, "
    "({0}).last_message, ({0}).turn_id, ({0}).turn_state, ({0}).message_id, ({0}).content, "
    "({0}).cancel_requested, ({0}).attempts"
)
# Composite columns are spread out, so that the driver never has to look a type up.
_PUT_VERSION = "SELECT put_agent_version($1, $2, $3)"
_PUT_SESSION = "SELECT * FROM put_session($1, $2, $3, $4, $5, $6, $7)"
_ACCEPT = (
    "SELECT r.status, r.state, r.owner, r.started, r.missing, r.cursor_epoch, r.cursor_n, "
    + CLAIM_COLUMNS.format("r.claim")
    + " FROM accept_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
    + " p_consents => $13, p_limits => $14, p_max_user_turns => $15) r"
)
_CANCEL = (
    "SELECT r.status, r.state, r.owner, "
    + CLAIM_COLUMNS.format("r.claim")
    + " FROM cancel_turn($1, $2, $3, $4, $5, $6) r"
)
_REQUESTED_CANCELS = "SELECT * FROM requested_cancels($1)"
_START = "SELECT * FROM start_turn($1, $2, $3, $4, $5, $6)"
_SETTLE = (
    "SELECT r.status, r.again, r.cancel, "
    + CLAIM_COLUMNS.format("r.next")
    + " FROM settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,"
    " $19, $20, $21, $22, $23) r"
)
_READ_MESSAGES = "SELECT * FROM read_messages($1, $2, $3, $4, $5)"
_READ_TURN = "SELECT * FROM read_turn($1, $2, $3)"
_READ_SESSIONS = "SELECT * FROM read_sessions($1, $2, $3, $4, $5)"
_READ_VERSION = "SELECT frozen::text FROM agent_versions WHERE hash = $1"


class SessionRow(NamedTuple):
    """A session as its user sees it."""

    id: UUID
    agent: str
    title: str | None
    created_at: dt.datetime
    updated_at: dt.datetime
    settled: Cursor


class PutSession(NamedTuple):
    """What became of a PUT; `status` is created | same | conflict."""

    status: str
    agent: str
    title: str | None
    created_at: dt.datetime
    cursor: Cursor


class Accepted(NamedTuple):
    """What became of a turn.

    `status` is created | same | conflict | not_found | busy | queue_full | consent_required (`missing`: the
    purposes), or the used-up budget, a `ledger.Scope`. `claim` is set when this call took the session,
    `started` when the turn already runs.
    """

    status: str
    state: str | None
    owner: UUID | None
    started: bool
    cursor: Cursor
    claim: Claim | None
    missing: list[str]


class Cancelled(NamedTuple):
    """What became of a cancel request; `status` is requested | finished | not_found."""

    status: str
    state: str | None
    owner: UUID | None
    claim: Claim | None


class TurnRow(NamedTuple):
    """A turn as its user sees it."""

    state: str
    error_code: str | None
    cancel_requested: bool
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    cursor_epoch: int
    cursor_n: int
    model_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    cost_usd_micros: int


class Messages(NamedTuple):
    """Messages with the position they are settled at, and the turn last begun there."""

    settled: Cursor
    last_message: int
    turn_id: UUID | None
    turn_state: str | None
    messages: list[StoredMessage]


class NewMessage(NamedTuple):
    """A message to settle; `content` is a JSON array of blocks."""

    id: str
    role: str
    content: str


class StepUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a step adds to its turn's account; the token counts do not overlap."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    cost_usd_micros: int = 0


NO_USAGE = StepUsage()
_NO_CALL = (None,) * 5


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """One step's result, ready to be sent, and sent again if the answer is lost."""

    session_id: UUID
    incarnation: UUID
    epoch: int
    turn_id: UUID
    messages: list[NewMessage]
    first: int
    last: int
    events: bytes
    final_state: FinalState | None = None
    error_code: str | None = None
    usage: StepUsage = NO_USAGE
    call: CallEnd | None = None
    """The model call that ended with this step."""


class Settled(NamedTuple):
    """The step is settled.

    `again`: it had been before, this was a repetition. `cancel`: the turn was asked to stop. `next`: the
    turn the session was kept for.
    """

    again: bool
    cancel: bool
    next: Claim | None


async def put_agent_version(database: Database, version: bytes, name: str, frozen: str) -> None:
    """Register an agent's prompt and tools under their hash."""
    await database.fetchval(_PUT_VERSION, version, name, frozen)


async def read_agent_version(database: Database, version: bytes) -> str | None:
    """Return the frozen prompt and tools of an older agent version as JSON text."""
    return await database.fetchval(_READ_VERSION, version)


async def put(
    database: Database,
    user_id: UUID,
    session_id: UUID,
    *,
    agent: str,
    version: bytes,
    title: str | None,
    body_hash: bytes,
    frozen: str | None = None,
) -> PutSession | None:
    """Make a session or find it again; None when the id is somebody else's.

    `frozen`: the version's JSON text, if it is not registered yet; it is written only with the session.
    """
    row = await database.fetchrow(_PUT_SESSION, user_id, session_id, agent, version, title, body_hash, frozen)
    if row is None:
        return None
    return PutSession(row["status"], row["agent"], row["title"], row["created_at"], Cursor(*row[4:6]))


async def accept(
    database: Database,
    *,
    user_id: UUID,
    session_id: UUID,
    turn_id: UUID,
    body_hash: bytes,
    message_id: str,
    content: str,
    on_busy: str | None,
    run_started: bytes,
    incarnation: UUID,
    live: bool,
    dead: list[UUID],
    max_queue: int,
    consents: str | None = None,
    limits: str | None = None,
    max_user_turns: int | None = None,
) -> Accepted:
    """Accept a turn; the session is claimed and the turn begun in the same call where possible.

    `consents`: what it needs, as JSON (see `db.consents`). `limits`: the budgets it must fit in, as JSON
    (`over_budget` in 0009_ledger).
    """
    row = await database.fetchrow(
        _ACCEPT,
        user_id,
        session_id,
        turn_id,
        body_hash,
        message_id,
        content,
        on_busy,
        run_started,
        incarnation,
        live,
        dead,
        max_queue,
        consents,
        limits,
        max_user_turns,
    )
    assert row is not None
    status, state, owner, started, missing, epoch, n, *claim = row
    cursor = Cursor(epoch or 0, n or 0)
    return Accepted(status, state, owner, started, cursor, Claim.of(tuple(claim)), missing)


async def cancel(
    database: Database,
    *,
    user_id: UUID,
    session_id: UUID,
    turn_id: UUID,
    incarnation: UUID,
    live: bool,
    dead: list[UUID],
) -> Cancelled:
    """Ask for a turn's end."""
    row = await database.fetchrow(_CANCEL, user_id, session_id, turn_id, incarnation, live, dead)
    assert row is not None
    status, state, owner, *claim = row
    return Cancelled(status, state, owner, Claim.of(tuple(claim)))


async def requested_cancels(database: Database, session_ids: list[UUID]) -> list[tuple[UUID, UUID]]:
    """Return (session, turn) of running turns somebody asked to stop, perhaps on another machine."""
    return [(row[0], row[1]) for row in await database.fetch(_REQUESTED_CANCELS, session_ids)]


async def start_turn(
    database: Database,
    session_id: UUID,
    incarnation: UUID,
    epoch: int,
    turn_id: UUID,
    n: int,
    run_started: bytes,
) -> tuple[bool, bool]:
    """Begin a queued turn at position n; sent again, it changes nothing.

    Returns whether it has begun (else the lease is lost) and whether the turn was asked to stop.
    """
    row = await database.fetchrow(_START, session_id, incarnation, epoch, turn_id, n, run_started)
    assert row is not None
    return row["begun"], bool(row["cancel"])


async def settle(on: Database | Connection, step: Settlement) -> Settled:
    """Settle a step, alone or inside the caller's transaction. Raises LeaseLost."""
    call = step.call
    row = await on.fetchrow(
        _SETTLE,
        step.session_id,
        step.incarnation,
        step.epoch,
        step.turn_id,
        [message.id for message in step.messages],
        [message.role for message in step.messages],
        [message.content for message in step.messages],
        step.first,
        step.last,
        step.events,
        step.final_state,
        step.error_code,
        step.usage.model_calls,
        step.usage.input_tokens,
        step.usage.output_tokens,
        step.usage.cache_read_input_tokens,
        step.usage.cache_write_input_tokens,
        step.usage.cost_usd_micros,
        *((call.call_id, call.state, call.charge, call.prompt_bytes, call.request_id) if call else _NO_CALL),
    )
    assert row is not None
    status, again, cancel_asked, *following = row
    if status != "settled":
        raise LeaseLost
    return Settled(again, bool(cancel_asked), Claim.of(tuple(following)))


async def read_messages(
    database: Database,
    user_id: UUID,
    session_id: UUID,
    *,
    after: int = 0,
    through: int | None = None,
    limit: int = 10_000,
) -> Messages | None:
    """Read settled messages after < n <= through with their position; None: not this user's session."""
    row = await database.fetchrow(_READ_MESSAGES, user_id, session_id, after, through, limit)
    if row is None:
        return None
    epoch, n, last_message, turn_id, turn_state, *columns = row
    messages: list[StoredMessage] = []
    if columns[0] is not None:
        messages = [
            StoredMessage(number, message_id, str(turn), role, content)
            for number, message_id, turn, role, content in zip(*columns, strict=True)
        ]
    return Messages(Cursor(epoch, n), last_message, turn_id, turn_state, messages)


async def read_turn(database: Database, user_id: UUID, session_id: UUID, turn_id: UUID) -> TurnRow | None:
    """Read a turn; None when the user has no such turn."""
    row = await database.fetchrow(_READ_TURN, user_id, session_id, turn_id)
    return None if row is None else TurnRow(*row)


async def read_sessions(
    database: Database,
    user_id: UUID,
    *,
    before: tuple[dt.datetime, UUID] | None = None,
    limit: int = 50,
    session_id: UUID | None = None,
) -> list[SessionRow]:
    """List a user's sessions, newest first, or find one."""
    before_time, before_id = before or (None, None)
    rows = await database.fetch(_READ_SESSIONS, user_id, before_time, before_id, limit, session_id)
    return [_session_row(tuple(row)) for row in rows]


def _session_row(values: tuple[Any, ...]) -> SessionRow:
    session_id, agent, title, created_at, updated_at, epoch, n = values
    return SessionRow(session_id, agent, title, created_at, updated_at, Cursor(epoch, n))
