"""This machine's part in running turns, put together: one object to start, use and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import UUID, uuid4

import asyncpg

from agent_backend.agents import Agent
from agent_backend.db import leases
from agent_backend.db.pool import Database
from agent_backend.engines.base import Engine
from agent_backend.telemetry import Log
from agent_backend.tools.base import Tool
from agent_backend.turns.commands import Commands
from agent_backend.turns.committer import Committer
from agent_backend.turns.fanout import Hub, LiveSession
from agent_backend.turns.notifier import Notifier
from agent_backend.turns.recovery import Recovery
from agent_backend.turns.runner import Runner
from agent_backend.turns.settling import Settler
from agent_backend.turns.situation import SituationReader
from agent_backend.turns.toolbox import Toolbox
from agent_backend.turns.versions import AgentVersions

_log = Log("machine")


class Machine:
    """Owns sessions, runs their turns and lets readers follow. `incarnation` is new with every boot."""

    def __init__(
        self,
        database: Database,
        *,
        machine_id: str,
        lease_seconds: float,
        group_commit_seconds: float,
        agents: Mapping[str, Agent],
        tools: Mapping[str, Tool],
        engines: Mapping[str, Engine],
    ) -> None:
        self.database = database
        self.incarnation: UUID = uuid4()
        self.hub = Hub()
        self._engines = engines
        self._notifier = Notifier(database, self.incarnation)
        self._committer = Committer(
            database,
            self.incarnation,
            group_commit_seconds,
            on_written=self._written,
            on_lost=self._lost,
            on_refused=self._lost,
        )
        self._versions = AgentVersions(database, agents, tools)
        self._runner = Runner(
            database=database,
            incarnation=self.incarnation,
            hub=self.hub,
            committer=self._committer,
            notifier=self._notifier,
            settler=Settler(database, self.incarnation, self._committer, self._notifier, 4 * lease_seconds),
            toolbox=Toolbox(database, tools),
            versions=self._versions,
            engines=engines,
            situation_of=SituationReader(database),
        )
        self._recovery = Recovery(
            database=database,
            machine_id=machine_id,
            incarnation=self.incarnation,
            lease=lease_seconds,
            hub=self.hub,
            runner=self._runner,
            notifier=self._notifier,
        )
        self.commands = Commands(
            database=database,
            incarnation=self.incarnation,
            hub=self.hub,
            runner=self._runner,
            notifier=self._notifier,
            versions=self._versions,
            dead=lambda: self._recovery.dead,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def superseded(self) -> bool:
        """Another process runs under this machine's id: this one owns nothing any more."""
        return self._recovery.superseded

    def _written(self, live: LiveSession) -> None:
        self._notifier.log_grew(live.session_id)

    def _lost(self, live: LiveSession) -> None:
        """Let go of a session; if the lease is in fact still ours, the sweep takes it anew, with a marker."""
        self._runner.lost(live)

    async def start(self) -> None:
        """Register this machine, then run its background work."""
        await asyncio.gather(self._recovery.register(), self._versions.register())
        self._tasks = [
            asyncio.create_task(self._recovery.run(), name="recovery"),
            asyncio.create_task(self._committer.run(), name="group commit"),
            asyncio.create_task(self._notifier.run(), name="notifier"),
        ]

    async def warm(self) -> None:
        """Prepare the engines: what the first turn would otherwise wait for."""
        for engine in self._engines.values():
            await engine.start()

    async def stop(self) -> None:
        """Give every session back and leave; another machine, or the next wake, goes on from the log."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.stop()
        try:
            await leases.remove(self.database, self.incarnation, only_if_expired=False)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("goodbye_failed", error=error)
        for engine in self._engines.values():
            await engine.aclose()
