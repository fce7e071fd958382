"""What can go wrong with machines behind the edge, each by a seed: the faults of the storm."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import asyncpg
import psutil

from .cloud import Cloud, signal_process
from .stack import OwnPostgres, Site

LEASE = 1.0

WEIGHTS = {
    "kill": 5,
    "kill_in_transaction": 3,
    "sigterm": 4,
    "freeze_short": 4,
    "freeze_long": 3,
    "freeze_in_transaction": 3,
    "suspend": 3,
    "deploy": 2,
    "postgres_restart": 1,
    "postgres_crash": 1,
    "model_fault": 5,
    "network_cut": 4,
    "clock_jump": 3,
}
"""How often each fault comes, relative to the others."""

_MODEL_FAULTS = (
    "429;retry_after=0.2",
    "529;retry_after=0.1",
    "500",
    "overloaded;after=5",
    "reset;after=4",
    "truncated;after=3",
    "cut;after=7",
    "stall;after=3;seconds=0.5",
    "slow;delay_ms=40",
    "disconnect",
)


class Harm:
    """Harms one cloud, one fault after the other. `done` counts what was done."""

    def __init__(self, cloud: Cloud, site: Site, database: OwnPostgres, rng: random.Random) -> None:
        self._cloud = cloud
        self._site = site
        self._database = database
        self._rng = rng
        self._release = 0
        self.done: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Do so many faults."""
        weights = dict(WEIGHTS)
        if not self._cloud.clock.environment:
            del weights["clock_jump"]
        for _ in range(count):
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
            name = self._rng.choices(list(weights), list(weights.values()))[0]
            fault: Callable[[], Awaitable[None]] = getattr(self, "_" + name)
            await fault()
            self.done[name] += 1

    async def _machine(self) -> tuple[str, psutil.Process]:
        """Choose a machine that runs; wait for one while all are asleep."""
        while True:
            running = sorted(self._cloud.machine_processes().items())
            if running:
                return self._rng.choice(running)
            await asyncio.sleep(0.05)

    # --- processes ---

    async def _kill(self) -> None:
        _, process = await self._machine()
        signal_process(process, signal.SIGKILL)

    async def _sigterm(self) -> None:
        machine, _ = await self._machine()
        await self._cloud.call("POST", f"/{machine}/stop")
        await self._cloud.settled(machine)

    async def _freeze(self, seconds: float) -> None:
        _, process = await self._machine()
        if signal_process(process, signal.SIGSTOP):
            try:
                await asyncio.sleep(seconds)
            finally:
                signal_process(process, signal.SIGCONT)

    async def _freeze_short(self) -> None:
        await self._freeze(self._rng.uniform(0.05, 0.7 * LEASE))

    async def _freeze_long(self) -> None:
        await self._freeze(self._rng.uniform(1.5 * LEASE, 2.5 * LEASE))

    async def _suspend(self) -> None:
        """Suspend through the API, as the proxy would; who wants it wakes it."""
        machine, _ = await self._machine()
        await self._cloud.call("POST", f"/{machine}/suspend")
        await asyncio.sleep(self._rng.uniform(0.2, 2.5 * LEASE))

    async def _kill_in_transaction(self) -> None:
        machine, process = await self._machine()
        await self._while_writing(machine, lambda: signal_process(process, signal.SIGKILL))

    async def _freeze_in_transaction(self) -> None:
        machine, process = await self._machine()
        await self._while_writing(machine, lambda: signal_process(process, signal.SIGSTOP))
        try:
            await asyncio.sleep(self._rng.uniform(0.2 * LEASE, 2.2 * LEASE))
        finally:
            signal_process(process, signal.SIGCONT)

    async def _while_writing(self, machine: str, harm: Callable[[], object]) -> None:
        """Hold up a session this machine owns until one of its statements waits, do harm, let go."""
        connection = await asyncpg.connect(self._site.database_url)
        try:
            async with connection.transaction():
                await connection.fetch(
                    "SELECT FROM myhealth.sessions s JOIN myhealth.machines m ON m.incarnation = s.owner "
                    "WHERE m.id = $1 ORDER BY s.id LIMIT 1 FOR UPDATE OF s",
                    machine,
                )
                for _ in range(60):
                    if await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_activity "
                        "WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
                    ):
                        break
                    await asyncio.sleep(0.005)
                harm()
                await asyncio.sleep(0.02)
        finally:
            await connection.close()

    # --- the rest of the world ---

    async def _deploy(self) -> None:
        self._release += 1
        await self._cloud.deploy(f"r{self._release}")

    async def _postgres(self, mode: str) -> None:
        await asyncio.to_thread(self._database.stop, "fast" if mode == "fast" else "immediate")
        try:
            await asyncio.sleep(self._rng.uniform(0, 2 * LEASE))
        finally:
            await asyncio.to_thread(self._database.start)

    async def _postgres_restart(self) -> None:
        await self._postgres("fast")

    async def _postgres_crash(self) -> None:
        await self._postgres("immediate")

    async def _model_fault(self) -> None:
        body = {"fault": self._rng.choice(_MODEL_FAULTS), "count": self._rng.randint(1, 3)}
        url = f"{self._site.emulator_url}/_emulator/faults"
        async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
            assert response.status == 201, await response.text()

    async def _network_cut(self) -> None:
        await self._cloud.cut_connections(0.5, self._rng.randint(1, 6000), self._rng.randint(0, 1 << 30))
        await asyncio.sleep(self._rng.uniform(0.3, 1.0))
        await self._cloud.cut_connections(0.0, 0, 0)

    async def _clock_jump(self) -> None:
        """Ahead by up to an hour, or behind by as much as a resumed machine lags."""
        seconds = self._rng.choice([self._rng.uniform(3, 3600), -self._rng.uniform(2.5, 9)])
        self._cloud.clock.move(seconds)
        try:
            await asyncio.sleep(self._rng.uniform(0.3, 2 * LEASE))
        finally:
            self._cloud.clock.move(0.0)

    async def calm(self) -> None:
        """Undo what lasts: a storm has ended."""
        self._cloud.clock.move(0.0)
        with suppress(aiohttp.ClientError):
            await self._cloud.cut_connections(0.0, 0, 0)
            async with aiohttp.ClientSession() as http:
                await http.delete(f"{self._site.emulator_url}/_emulator/faults")
