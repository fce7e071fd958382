"""What does not stay longer than it must, and erasures that were interrupted: the machine's housekeeping.

Each job is a batch in one call, asked again until it finds nothing; whatever interrupts it, the next round
goes on. Another kind of data with a retention of its own is one more entry in `_jobs`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from agent_backend.db import erasures, ledger
from agent_backend.db.events import compact
from agent_backend.db.pool import Database
from agent_backend.telemetry import Log
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED
from agent_backend.turns.erasing import Eraser

_log = Log("retention")

_FIRST_SECONDS = 60.0
"""Soon after the boot, since machines do not stay up."""
_ROUND_SECONDS = 3600.0
_LOGS = 200
_SESSIONS = 20
_SAMPLES = 5_000
_VERSIONS = 200
_CALLS = 2_000
_RECEIPT_DAYS = 3 * 365
"""How long it can be shown that an erasure was carried out: claims lapse after three years (BGB 195)."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How many days each kind of data is kept; 0 keeps it."""

    events: float = 0
    """Events of finished turns, and what devices answered; the messages stay."""
    sessions: float = 0
    """Sessions without activity."""
    health: float = 0
    """Samples, by their time."""
    calls: float = 400
    """What model calls have cost; a year's bills can be compared, and no current month is touched."""
    tombstones: float = 90
    """Of erased users: longer than tokens live, and than backups."""


Batch: TypeAlias = Callable[[dt.datetime], Awaitable[bool]]
"""Deletes one batch of what is older; returns whether there is more."""


class Job(NamedTuple):
    """One kind of data: `days` it is kept (None: not a matter of age)."""

    name: str
    days: float | None
    batch: Batch


class Housekeeper:
    """Runs the jobs of one machine."""

    def __init__(
        self,
        database: Database,
        eraser: Eraser,
        keep: Retention,
        *,
        awake: asyncio.Event,
        look_seconds: float,
    ) -> None:
        self._database = database
        self._eraser = eraser
        self._keep = keep
        self._awake = awake
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Run a round every hour until cancelled."""
        pause = _FIRST_SECONDS
        while True:
            await asyncio.sleep(pause)
            await self._awake.wait()
            pause = _ROUND_SECONDS
            await self.round()

    async def resume_erasures(self) -> None:
        """Go on with erasures that nobody goes on with, until cancelled."""
        while True:
            await self._awake.wait()
            try:
                more = await self._eraser.resume() > 0
            except (*CONNECTION_TROUBLE, *LOCKED) as error:
                _log.warning("erasures_not_read", error=error)
                more = False
            if not more:
                await asyncio.sleep(self._look_seconds)

    async def round(self) -> None:
        """Delete everything that is due."""
        for job in self._jobs():
            if job.days is not None and not job.days:
                continue
            before = dt.datetime.now(dt.UTC) - dt.timedelta(days=job.days or 0)
            batches = 1
            while await job.batch(before):
                batches += 1
            if batches > 1:
                _log.info("expired", kind=job.name, batches=batches)

    def _jobs(self) -> list[Job]:
        keep = self._keep
        return [
            Job("sessions", keep.sessions, self._sessions),
            Job("events", keep.events, self._events),
            Job("samples", keep.health, self._samples),
            Job("versions", None, self._versions),
            Job("calls", keep.calls, self._calls),
            Job("tombstones", keep.tombstones, self._tombstones),
        ]

    async def _events(self, _before: dt.datetime) -> bool:
        return await compact(self._database, self._keep.events, _LOGS) == _LOGS

    async def _sessions(self, before: dt.datetime) -> bool:
        return await erasures.expire_sessions(self._database, before, _SESSIONS) == _SESSIONS

    async def _samples(self, before: dt.datetime) -> bool:
        """Go through all users, each in batches."""
        user: UUID | None = None
        while True:
            part = await erasures.expire_samples(self._database, user, before, _SAMPLES)
            if part.user is None:
                return False
            if not part.more:
                user = part.user

    async def _versions(self, _before: dt.datetime) -> bool:
        return await erasures.collect_versions(self._database, _VERSIONS) == _VERSIONS

    async def _calls(self, before: dt.datetime) -> bool:
        return await ledger.expire_calls(self._database, before, _CALLS) == _CALLS

    async def _tombstones(self, before: dt.datetime) -> bool:
        receipts = dt.datetime.now(dt.UTC) - dt.timedelta(days=_RECEIPT_DAYS)
        await erasures.expire_erasures(self._database, before, receipts)
        return False
