"""Telling other machines: coalesced NOTIFYs, never inside a settling transaction.

A NOTIFY inside a transaction serialises commits (measured: 168 a second against 3,037), so ids are collected
for a few milliseconds and go out in a call of their own. A lost NOTIFY costs time, never truth: readers and
owners also poll, slowly.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import msgspec

from agent_backend.db.pool import Database
from agent_backend.telemetry import Log

_log = Log("notifier")

CHANNEL = "myhealth"
_DELAY = 0.01
_MAX_IDS = 150
"""A payload must stay under 8,000 bytes."""


class Notice(msgspec.Struct, rename={"sender": "s", "log": "l", "work": "w"}, omit_defaults=True):
    """What one NOTIFY says: logs that grew, sessions whose owner has something new to look at."""

    sender: str
    log: list[UUID] = []
    work: list[UUID] = []


_decoder = msgspec.json.Decoder(Notice)


def read_notice(payload: str) -> Notice | None:
    """Read a payload; None for anything that is not ours."""
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:
        return None


class Notifier:
    """Collects ids and sends them. `alone` (no other machine lives) saves the calls nobody would hear."""

    def __init__(self, database: Database, incarnation: UUID) -> None:
        self._database = database
        self._sender = str(incarnation)
        self._log: set[UUID] = set()
        self._work: set[UUID] = set()
        self._ready = asyncio.Event()
        self.alone = False

    def log_grew(self, session_id: UUID) -> None:
        """Let the session's readers on other machines look: its log has new events."""
        if not self.alone:
            self._log.add(session_id)
            self._ready.set()

    def work_for(self, session_id: UUID) -> None:
        """Let the session's owner, on another machine, look: a new turn or a cancel request."""
        self._work.add(session_id)
        self._ready.set()

    async def hello(self) -> None:
        """Tell the others that this machine lives and listens from now on."""
        await self._send(Notice(sender=self._sender))

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._ready.wait()
            await asyncio.sleep(_DELAY)
            self._ready.clear()
            log, self._log = list(self._log), set()
            work, self._work = list(self._work), set()
            for start in range(0, max(len(log), len(work)), _MAX_IDS // 2):
                part = slice(start, start + _MAX_IDS // 2)
                await self._try_send(Notice(sender=self._sender, log=log[part], work=work[part]))

    async def _try_send(self, notice: Notice) -> None:
        try:
            await self._send(notice)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("notify_failed", error=error)

    async def _send(self, notice: Notice) -> None:
        await self._database.fetchval(
            "SELECT pg_notify($1, $2)", CHANNEL, msgspec.json.encode(notice).decode()
        )
