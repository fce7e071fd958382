"""This machine's part in running turns, put together: one object to start, use and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from uuid import UUID, uuid4

import asyncpg

from agent_backend.agents import Agent
from agent_backend.consents import Catalogue
from agent_backend.db import erasures, leases
from agent_backend.db.erasures import Erasure
from agent_backend.db.pool import Database
from agent_backend.engines.base import Engine
from agent_backend.telemetry import Log
from agent_backend.tools.base import Tool
from agent_backend.turns.commands import Commands
from agent_backend.turns.committer import Committer
from agent_backend.turns.consent import Consents
from agent_backend.turns.erasing import Accounts, Eraser
from agent_backend.turns.fanout import Hub, LiveSession
from agent_backend.turns.notifier import Notifier
from agent_backend.turns.recovery import Recovery
from agent_backend.turns.retention import Housekeeper, Retention
from agent_backend.turns.runner import Runner
from agent_backend.turns.settling import Settler
from agent_backend.turns.situation import SituationReader
from agent_backend.turns.spending import Limits, Spending
from agent_backend.turns.toolbox import Toolbox
from agent_backend.turns.versions import AgentVersions

_log = Log("machine")


_LEDGER_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_LAST_COMMIT_SECONDS = 1.0
"""For what is shown and not persisted when the runs end; the rest is shown anew after the takeover."""


class Machine:
    """Owns sessions, runs their turns and lets readers follow. `incarnation` is new with every boot."""

    def __init__(
        self,
        database: Database,
        *,
        machine_id: str,
        lease_seconds: float,
        group_commit_seconds: float,
        retention: Retention | None = None,
        accounts: Accounts | None = None,
        call_seconds: float = 120,
        limits: Limits | None = None,
        require_birth_year: bool = False,
        max_user_turns: int | None = None,
        agents: Mapping[str, Agent],
        tools: Mapping[str, Tool],
        engines: Mapping[str, Engine],
        consents: Catalogue,
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
        self.situations = SituationReader(database, require_birth_year=require_birth_year)
        self._versions = AgentVersions(database, agents, tools)
        self.consents = Consents(database, consents)
        self._spending = Spending(database, self.incarnation, limits or Limits(), agents, tools)
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
            situation_of=self.situations,
            consents=self.consents,
            call_seconds=call_seconds,
            spending=self._spending,
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
            consents=self.consents,
            admit=self.situations.admit,
            dead=lambda: self._recovery.dead,
            sweep_soon=self._recovery.sweep_soon,
            spending=self._spending,
            max_user_turns=max_user_turns,
        )
        self._eraser = Eraser(database, accounts, gone=self._gone, forget=self._forget)
        self._housekeeper = Housekeeper(
            database,
            self._eraser,
            retention or Retention(),
            awake=self._recovery.awake,
            look_seconds=min(30.0, 2 * lease_seconds),
        )
        self._work: dict[str, asyncio.Task[None]] = {}

    @property
    def superseded(self) -> bool:
        """Another process runs under this machine's id: this one owns nothing any more."""
        return self._recovery.superseded

    @property
    def resting(self) -> bool:
        """Whether this machine has let go of the database, to be suspended."""
        return self._recovery.resting

    def rest(self) -> None:
        """Let go of the database before the machine is suspended."""
        self._recovery.rest()

    async def wake(self, why: str) -> None:
        """Come back from `rest`."""
        if self.resting:
            _log.info("woke", why=why)
            self._recovery.wake()

    async def work_left(self) -> bool:
        """Say whether anything here or unowned in the database is not finished: then nobody may sleep.

        Raises what asking the database raises.
        """
        if self.hub.live or self.hub.claiming:
            return True
        if await leases.work_left(self.database, self.incarnation):
            return True
        return await erasures.due(self.database)

    async def erase(self, user_id: UUID) -> Erasure:
        """Erase a user: see `Eraser.erase`. Their turns end, here and on other machines."""
        return await self._eraser.erase(user_id)

    def _gone(self, session_ids: list[UUID]) -> None:
        """Let owners and readers of sessions that were erased look, here and elsewhere."""
        for session_id in session_ids:
            live = self.hub.live.get(session_id)
            if live is not None:
                self._lost(live)
            self.hub.wake_remote(session_id)
            self._notifier.log_grew(session_id)
            self._notifier.work_for(session_id)

    def _forget(self, user_id: UUID) -> None:
        """Drop what memory holds of a user; other machines' caches end within their own bounds."""
        self.situations.forget(user_id)
        self.consents.forget(user_id)
        self._versions.forget()

    def _written(self, live: LiveSession) -> None:
        self._notifier.log_grew(live.session_id)

    def _lost(self, live: LiveSession) -> None:
        """Let go of a session; if the lease is in fact still ours, the sweep takes it anew, with a marker."""
        self._runner.lost(live)

    async def start(self) -> None:
        """Register this machine, then run its background work."""
        await asyncio.gather(self._recovery.register(), self._versions.register())
        work = {
            "recovery": self._recovery.run,
            "group commit": self._committer.run,
            "notifier": self._notifier.run,
            "housekeeping": self._housekeeper.run,
            "erasures": self._housekeeper.resume_erasures,
            "ledger": self._tend_forever,
        }
        self._work = {name: asyncio.create_task(_keep(name, run), name=name) for name, run in work.items()}

    async def _tend_forever(self) -> None:
        """Keep the ledger in order, but not while the machine is to be suspended."""
        while True:
            await asyncio.sleep(_LEDGER_SECONDS)
            if not self.resting:
                try:
                    await self._spending.tend()
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    _log.warning("ledger_untended", error=error)

    async def finish_turns(self, seconds: float) -> None:
        """Give running turns so long to end; what still runs then is given back in mid-turn by `stop`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while tasks := [live.task for live in self.hub.live.values() if live.task is not None]:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.wait(tasks, timeout=left)

    async def _end_work(self, *names: str) -> None:
        tasks = [self._work[name] for name in names if name in self._work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def warm(self) -> None:
        """Prepare the engines: what the first turn would otherwise wait for."""
        for engine in self._engines.values():
            await engine.start()

    async def stop(self) -> None:
        """Give every session back and leave; another machine, or the next wake, goes on from the log.

        The runs end first: a settle must never be sent while a group commit was cut off with its outcome
        unknown, for it would write the same events once more.
        """
        # Nor may the sweep take up again what the runs have let go of.
        await self._end_work("recovery")
        owned = await self._runner.halt()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                await self._committer.drain()
        await self._end_work(*self._work)
        await self._eraser.stop()
        await self._runner.give_back(owned)
        try:
            await leases.remove(self.database, self.incarnation, only_if_expired=False)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("goodbye_failed", error=error)
        for engine in self._engines.values():
            await engine.aclose()


async def _keep(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run background work for ever: a fault in it must not end this machine's pulse in silence."""
    while True:
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - the boundary of these tasks
            _log.error("background_work_broke", error=error, work=name)
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return
