"""Group commit: one call per tick persists the new deltas of all streams of this machine.

So the database's load does not grow with tokens. At most one call is in flight. A segment's bounds freeze
at its first attempt, so that an attempt with unknown outcome can be repeated without doubling anything. A
batch the database refuses is bisected: one bad event harms one session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg

from agent_backend.db import events as log
from agent_backend.telemetry import Log, metrics

if TYPE_CHECKING:
    from agent_backend.db.pool import Database
    from agent_backend.turns.fanout import LiveSession, Numbered

_log = Log("committer")

CONNECTION_TROUBLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The pool's, when a connection was dropped under a statement; it hides what became of the statement.
    asyncpg.InternalClientError,
    # What Postgres answers while it goes, comes, or is full or read-only after a failover. The first two end
    # statements, whose outcome is then unknown; the others say nothing of what an earlier attempt has done.
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""The database cannot be asked now; nothing is wrong with what it was asked."""
LOCKED = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError)
"""Somebody held the row for too long; nothing was written by this attempt."""
_MAX_SEGMENT_EVENTS = 2_000


class Batch(NamedTuple):
    """A frozen piece of one session's pending events."""

    session: LiveSession
    events: list[Numbered]

    def segment(self) -> log.Segment:
        """Return it as a row of the log."""
        return log.Segment(
            self.session.session_id,
            self.session.epoch,
            self.events[0].n,
            self.events[-1].n,
            b"\n".join([event for _, event in self.events]),
        )


class Committer:
    """Persists pending events every `interval` seconds.

    `on_lost` is told of sessions no longer ours, `on_refused` of sessions whose events the database
    would not take, `on_written` of every session whose log has grown.
    """

    def __init__(
        self,
        database: Database,
        incarnation: UUID,
        interval: float,
        *,
        on_written: Callable[[LiveSession], None],
        on_lost: Callable[[LiveSession], None],
        on_refused: Callable[[LiveSession], None],
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._interval = interval
        self._on_written = on_written
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._dirty: dict[LiveSession, None] = {}
        self._in_flight: dict[LiveSession, Batch] = {}
        self._settling: set[LiveSession] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._work = asyncio.Event()

    def note(self, session: LiveSession) -> None:
        """Remember that the session has events to persist."""
        self._dirty[session] = None
        self._work.set()

    async def take_over(self, session: LiveSession) -> list[Numbered]:
        """Give a settle the events it must persist itself; none of the session's are in flight afterwards.

        Call `settled` when the settle has been answered. Until then the session is left alone here.
        """
        self._settling.add(session)
        while session in self._in_flight and not session.fenced:
            await self._idle.wait()
        self._dirty.pop(session, None)
        return session.pending

    def settled(self, session: LiveSession) -> None:
        """End what `take_over` began."""
        self._settling.discard(session)
        if session.pending and not session.fenced:
            self.note(session)

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            await self._work.wait()
            await asyncio.sleep(self._interval)
            self._work.clear()
            await self.flush()

    async def drain(self) -> None:
        """Wait until what is pending has been persisted; nothing new may be published meanwhile."""
        while self._in_flight or any(  # noqa: ASYNC110 - at the very end
            session.pending and not session.fenced for session in self._dirty
        ):
            await asyncio.sleep(self._interval / 4)

    async def flush(self) -> None:
        """Persist what is pending now, once."""
        batches = [
            Batch(session, session.pending[:_MAX_SEGMENT_EVENTS])
            for session in self._dirty
            if session.pending and not session.fenced and session not in self._settling
        ]
        self._dirty = {session: None for session in self._dirty if session in self._settling}
        if not batches:
            return
        self._in_flight = {batch.session: batch for batch in batches}
        self._idle.clear()
        began = time.perf_counter()
        try:
            await self._write(batches)
        except BaseException:
            # Written or not, nobody knows: with other bounds it must never be written again.
            for batch in batches:
                self._on_refused(batch.session)
            raise
        finally:
            metrics.group_commit_seconds.observe(time.perf_counter() - began)
            self._in_flight = {}
            self._idle.set()

    async def _write(self, batches: list[Batch], *, unknown: bool = False) -> None:
        """Write frozen batches until each is kept, lost or refused.

        `unknown`: an attempt was made whose answer is lost, so these bounds may stand in the log already.
        """
        delay = 0.1
        while True:
            try:
                kept = await log.append(
                    self._database, self._incarnation, [batch.segment() for batch in batches]
                )
            except CONNECTION_TROUBLE as error:
                _log.warning("group_commit_retry", error=error, sessions=len(batches))
                unknown = True
                batches = [batch for batch in batches if not batch.session.fenced]
                if not batches:
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            except asyncpg.PostgresError as error:
                await self._refused(batches, error, unknown=unknown)
                return
            else:
                self._finish(batches, kept)
                return

    async def _refused(self, batches: list[Batch], error: asyncpg.PostgresError, *, unknown: bool) -> None:
        if len(batches) > 1:
            middle = len(batches) // 2
            await self._write(batches[:middle], unknown=unknown)
            await self._write(batches[middle:], unknown=unknown)
            return
        session = batches[0].session
        if isinstance(error, LOCKED) and not unknown:
            # Somebody holds the row; nothing was written, so the next tick may try with other bounds.
            self.note(session)
            return
        _log.error("segment_refused", error=error, session_id=session.session_id)
        self._on_refused(session)

    def _finish(self, batches: list[Batch], kept: set[UUID]) -> None:
        for batch in batches:
            session = batch.session
            if session.session_id not in kept:
                self._on_lost(session)
                continue
            metrics.segments_written += 1
            # Pending may have grown meanwhile; what was written is its beginning.
            del session.pending[: len(batch.events)]
            if session.pending and session not in self._settling:
                self.note(session)
            self._on_written(session)
