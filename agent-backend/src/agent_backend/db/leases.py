"""Machines' liveness and the ownership of sessions in Postgres."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from agent_backend.db.pool import Connection, Database

_REGISTER = "SELECT register_machine($1, $2, $3)"
_BEAT = "SELECT * FROM beat($1, $2, $3)"
_WORK_LEFT = "SELECT work_left($1)"
_REMOVE = "SELECT remove_machine($1, $2)"
_CLAIMABLE = "SELECT * FROM claimable_sessions($1, $2, $3, $4)"
_CLAIM = "SELECT * FROM claim_sessions($1, $2, $3, $4)"
_TAKEN = "SELECT taken_sessions($1, $2, $3)"
_RELEASE = "SELECT (r).* FROM release_session($1, $2, $3, $4, $5) r"


class Claim(NamedTuple):
    """A session just taken, or kept, and its oldest unfinished turn (`turn_id` None: there is none).

    `content` is the turn's user message as a JSON array of blocks.
    """

    session_id: UUID
    user_id: UUID
    agent: str
    agent_version: bytes
    epoch: int
    next_n: int
    last_message: int
    turn_id: UUID | None
    turn_state: str | None
    message_id: str | None
    content: str | None
    cancel_requested: bool
    attempts: int

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Claim | None:
        """Read the columns of the type `claim`; None for a null composite."""
        return None if values[0] is None else cls(*values)


class Heartbeat(NamedTuple):
    """One machine's lease as the database tells it."""

    machine_id: str
    incarnation: UUID
    alive_until: dt.datetime
    database_time: dt.datetime


async def register(connection: Connection, machine_id: str, incarnation: UUID, lease: float) -> None:
    """Announce this incarnation; an older one of the same machine is gone with that."""
    await connection.fetchval(_REGISTER, machine_id, incarnation, dt.timedelta(seconds=lease))


async def beat(connection: Connection, machine_id: str, incarnation: UUID, lease: float) -> list[Heartbeat]:
    """Prolong this machine's lease (seconds) and return all machines' leases."""
    rows = await connection.fetch(_BEAT, machine_id, incarnation, dt.timedelta(seconds=lease))
    return [Heartbeat(*row) for row in rows]


async def remove(on: Database | Connection, incarnation: UUID, *, only_if_expired: bool) -> None:
    """Say goodbye, or bury a machine that was watched to be dead."""
    await on.fetchval(_REMOVE, incarnation, only_if_expired)


async def work_left(database: Database, incarnation: UUID) -> bool:
    """Say whether there are unfinished turns that no other living machine runs."""
    return await database.fetchval(_WORK_LEFT, incarnation)


async def claimable(
    database: Database, incarnation: UUID, dead: list[UUID], live: list[UUID], limit: int
) -> list[tuple[UUID, int]]:
    """Return sessions, with their epochs, that have work and no living owner and are not `live` here."""
    rows = await database.fetch(_CLAIMABLE, incarnation, dead, live, limit)
    return [(row[0], row[1]) for row in rows]


async def claim(
    database: Database, incarnation: UUID, dead: list[UUID], seen: list[tuple[UUID, int]]
) -> list[Claim]:
    """Take sessions `claimable` has named, unless they have a new epoch since."""
    sessions, epochs = [each[0] for each in seen], [each[1] for each in seen]
    rows = await database.fetch(_CLAIM, incarnation, dead, sessions, epochs)
    return [Claim(*row) for row in rows]


async def taken(database: Database, incarnation: UUID, held: list[tuple[UUID, int]]) -> set[UUID]:
    """Return which of the sessions held in an epoch somebody else has taken since."""
    sessions, epochs = [session for session, _ in held], [epoch for _, epoch in held]
    return {row[0] for row in await database.fetch(_TAKEN, incarnation, sessions, epochs)}


async def release(
    database: Database, session_id: UUID, incarnation: UUID, epoch: int, next_n: int, *, force: bool
) -> Claim | None:
    """Give a session back, also in mid-turn with `force`; returns the next turn if it was kept."""
    row: asyncpg.Record | None = await database.fetchrow(
        _RELEASE, session_id, incarnation, epoch, next_n, force
    )
    return None if row is None else Claim.of(tuple(row))
