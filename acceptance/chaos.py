"""Faults with seeds for bare servers on one database: kills and freezes, also inside transactions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from .stack import Backend, Site

LEASE = 1.0
"""Seconds; the servers under test are started with it."""


class Slot:
    """A machine: its name stays, its process comes and goes."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.name = name
        self.backend: Backend | None = None
        self._all: list[Backend] = []

    async def start(self) -> None:
        """Start the process and wait until it serves."""
        env = self._site.environment(
            MACHINE_ID=self.name,
            LEASE_SECONDS=str(LEASE),
            GROUP_COMMIT_MS="40",
            POOL_MIN="1",
            TOOL_CALL_SECONDS="1",
        )
        backend = Backend(env)
        self._all.append(backend)
        await asyncio.to_thread(backend.wait_until_ready)
        self.backend = backend

    def kill(self) -> None:
        """SIGKILL."""
        if self.backend is not None:
            self.backend.kill()
            self.backend.end()
            self.backend = None

    def errors(self) -> list[dict[str, Any]]:
        """Return what its processes have logged as errors."""
        return [line for backend in self._all for line in backend.errors()]

    @property
    def url(self) -> str | None:
        """Where it serves; None while it is down."""
        return None if self.backend is None else self.backend.url


class Injector:
    """Does harm to one machine, by the seed."""

    def __init__(self, slot: Slot, rng: random.Random, database_url: str) -> None:
        self._slot = slot
        self._rng = rng
        self._database_url = database_url
        self.done: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Do so many faults, one after the other."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze_short": self._freeze_short,
            "freeze_long": self._freeze_long,
            "kill_in_transaction": self._kill_in_transaction,
            "freeze_in_transaction": self._freeze_in_transaction,
        }
        weights = [4, 4, 2, 2, 2]
        for _ in range(count):
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))
            name = self._rng.choices(list(faults), weights)[0]
            await faults[name]()
            self.done[name] += 1

    async def _kill(self) -> None:
        self._slot.kill()
        await self._slot.start()

    async def _freeze(self, seconds: float) -> None:
        assert self._slot.backend is not None
        self._slot.backend.freeze()
        await asyncio.sleep(seconds)
        self._slot.backend.thaw()

    async def _freeze_short(self) -> None:
        await self._freeze(self._rng.uniform(0.05, 0.7 * LEASE))

    async def _freeze_long(self) -> None:
        await self._freeze(self._rng.uniform(1.5 * LEASE, 2.5 * LEASE))

    async def _kill_in_transaction(self) -> None:
        """Kill while a statement of the server waits inside Postgres, which then goes on and commits it."""

        async def harm() -> None:
            self._slot.kill()

        await self._while_writing(harm)
        await self._slot.start()

    async def _freeze_in_transaction(self) -> None:
        """Freeze while a statement waits; it commits, and nobody reads the answer for longer than a lease."""

        async def harm() -> None:
            assert self._slot.backend is not None
            self._slot.backend.freeze()

        await self._while_writing(harm)
        await asyncio.sleep(self._rng.uniform(0.2 * LEASE, 2.2 * LEASE))
        assert self._slot.backend is not None
        self._slot.backend.thaw()

    async def _while_writing(self, harm: Callable[[], Awaitable[None]]) -> None:
        """Hold up a session this machine owns until one of its statements waits, do harm, let go."""
        connection = await asyncpg.connect(self._database_url)
        try:
            async with connection.transaction():
                await connection.fetch(
                    "SELECT FROM myhealth.sessions s JOIN myhealth.machines m ON m.incarnation = s.owner "
                    "WHERE m.id = $1 ORDER BY s.id LIMIT 1 FOR UPDATE OF s",
                    self._slot.name,
                )
                for _ in range(60):
                    if await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_activity "
                        "WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
                    ):
                        break
                    await asyncio.sleep(0.005)
                await harm()
                await asyncio.sleep(0.02)
        finally:
            await connection.close()
