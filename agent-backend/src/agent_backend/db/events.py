"""The event log in Postgres: group commit and reading."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from agent_backend.db.pool import Database
from agent_backend.events import Cursor

_APPEND = "SELECT append_segments($1, $2, $3, $4, $5, $6)"
_READ = "SELECT * FROM read_log($1, $2, $3, $4, $5)"
_COMPACT = "SELECT compact_logs($1, $2)"

PAGE = 500
"""Segments per read; a segment holds about 100 ms of one session."""


class Segment(NamedTuple):
    """Events first..last of one epoch, joined by newlines."""

    session_id: UUID
    epoch: int
    first: int
    last: int
    events: bytes


class Marker(NamedTuple):
    """An unclean end: settled were the messages up to `through` and the events up to `settled`."""

    at: Cursor
    through: int
    settled: Cursor


class LogPage(NamedTuple):
    """Part of a session's log and what a reader must know to join the live stream.

    `known_last` is the last persisted number in the epoch that was asked for (None: nothing of it).
    `items` are (cursor of the first event, events) or markers, in log order; `complete` says whether
    this is all there is.
    """

    owner: UUID | None
    epoch: int
    settled: Cursor
    floor: Cursor
    known_last: int | None
    items: list[tuple[Cursor, list[bytes]] | Marker]
    complete: bool


async def append(database: Database, incarnation: UUID, segments: list[Segment]) -> set[UUID]:
    """Persist segments; return the sessions whose lease held. Sent again, it changes nothing."""
    columns = [list(column) for column in zip(*segments, strict=True)]
    rows = await database.fetch(_APPEND, incarnation, *columns)
    return {row[0] for row in rows}


async def read(database: Database, user_id: UUID, session_id: UUID, after: Cursor) -> LogPage | None:
    """Read the log after a cursor; None when the user has no such session."""
    row = await database.fetchrow(_READ, user_id, session_id, after.epoch, after.n, PAGE)
    if row is None:
        return None
    (owner, epoch, settled_epoch, settled_n, floor_epoch, floor_n, known_last, *columns) = row
    rows = [] if columns[0] is None else zip(*columns, strict=True)
    items = [_item(after, *values) for values in rows]
    return LogPage(
        owner,
        epoch,
        Cursor(settled_epoch, settled_n),
        Cursor(floor_epoch, floor_n),
        known_last,
        items,
        complete=len(items) < PAGE,
    )


def _item(
    after: Cursor,
    epoch: int,
    first: int,
    last: int,
    events: bytes,
    through: int | None,
    settled_epoch: int | None,
    settled_n: int | None,
) -> tuple[Cursor, list[bytes]] | Marker:
    if through is not None and settled_epoch is not None and settled_n is not None:
        return Marker(Cursor(epoch, last), through, Cursor(settled_epoch, settled_n))
    parts = events.split(b"\n")
    # The reader may stand inside this segment.
    seen = max(0, after.n - first + 1) if after.epoch == epoch else 0
    return Cursor(epoch, first + seen), parts[seen:]


async def compact(database: Database, before_days: float, limit: int = 500) -> int:
    """Shrink logs of sessions untouched for `before_days`; return how many."""
    import datetime as dt  # noqa: PLC0415 - off the boot path

    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=before_days)
    return await database.fetchval(_COMPACT, before, limit)
