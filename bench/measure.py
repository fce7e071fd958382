"""What is done to a server, and what is read off it meanwhile."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import NamedTuple

import msgspec
import uvloop

from bench.client import Request, Seen, drive
from bench.processes import Process, cpu_ns, memory, tree_cpu_ns
from bench.targets import Emulator, Postgres, Shape, Target, model_turns

STREAM = Shape(deltas=100, delay_ms=20, ttft_ms=100)
CROWD = Shape(deltas=400, delay_ms=50, ttft_ms=100)
SHORT = Shape(deltas=10, delay_ms=0, ttft_ms=0)
OPEN = Shape(deltas=50, delay_ms=250, ttft_ms=100)

_MEMORY_EVERY = 3.0
_IDLE_SECONDS = 1.5
_OPEN_RAMP = 5.0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much load a round makes. Clients beyond the first begin evenly spread, as people do."""

    clients: int = 20
    stream_turns: int = 4
    short_turns: int = 100
    crowd: int = 400
    crowd_ramp: float = 5.0
    wakes: int = 9
    readers: int = 8
    reader_turns: int = 3
    open: tuple[int, int] = (400, 800)


QUICK = Size(
    stream_turns=1, short_turns=20, crowd_ramp=2.0, wakes=2, readers=4, reader_turns=1, open=(50, 150)
)


class Shares(NamedTuple):
    """Cores used: 1.0 is one core."""

    server: float
    model: float
    client: float
    postgres: float


class Load(NamedTuple):
    """One run of a shape against one server. Times in milliseconds; `delays` and `firsts` are sorted."""

    seconds: float
    turns: int
    deltas: int
    cpu_ms: float
    delays: list[float]
    firsts: list[float]
    pss_mb: float
    shares: Shares

    @property
    def cpu_ms_per_1k(self) -> float:
        """CPU of the server per 1000 deltas."""
        return self.cpu_ms / self.deltas * 1000


def at(share: float, ordered: list[float]) -> float:
    """Return a quantile of sorted values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Bench:
    """The model and the database that all servers of a run share, and how a server is loaded."""

    def __init__(self, emulator: Emulator, postgres: Postgres, size: Size) -> None:
        self._emulator = emulator
        self._postgres = postgres
        self._size = size

    def stream(self, target: Target, process: Process) -> Load:
        """20 clients, 100 deltas at 20 ms, turn after turn."""
        clients, turns = self._size.clients, self._size.stream_turns
        requests = target.turns(STREAM, clients * turns)
        return self._load(target.port, process, _queues(requests, clients), STREAM.seconds() / clients)

    def short(self, target: Target, process: Process) -> Load:
        """20 clients, 10 deltas without delay, turn after turn."""
        clients, turns = self._size.clients, self._size.short_turns
        return self._load(target.port, process, _queues(target.turns(SHORT, clients * turns), clients), 0)

    def crowd(self, target: Target, process: Process) -> Load:
        """400 streams side by side, 20 deltas a second each."""
        count = self._size.crowd
        requests = target.turns(CROWD, count)
        stagger = self._size.crowd_ramp / count
        return self._load(target.port, process, _queues(requests, count), stagger)

    def open_streams(self, target: Target, process: Process, count: int) -> Load:
        """So many streams side by side, so slow that none waits: what they hold, not what they cost."""
        return self._load(target.port, process, _queues(target.turns(OPEN, count), count), _OPEN_RAMP / count)

    def warm_up(self, target: Target) -> None:
        """Run a few turns side by side that nobody counts: imports, connections, caches."""
        uvloop.run(drive(target.port, _queues(target.turns(SHORT, 20), 5), 0))

    def idle(self, target: Target, process: Process) -> float:
        """Return what a server holds (PSS, MB) that has served one turn and then had nothing to do."""
        uvloop.run(drive(target.port, [target.turns(SHORT, 1)], 0))
        time.sleep(_IDLE_SECONDS)
        return memory(process.pid).pss

    def model_first_ms(self, shape: Shape = STREAM, clients: int | None = None) -> float:
        """Return the median time to the first delta when the model is asked without a server in between."""
        clients = clients or self._size.clients
        queues = _queues(model_turns(shape, max(10, clients * 2)), clients)
        seen = uvloop.run(drive(self._emulator.port, queues, shape.seconds() / clients))
        return at(0.5, sorted(each.first / 1e6 for each in seen))

    def _load(self, port: int, process: Process, queues: list[list[Request]], stagger: float) -> Load:
        gc.collect()
        gc.disable()  # a collection of ours would show as a delay of theirs
        before, began = self._cpu(process), time.monotonic_ns()
        seen, pss = uvloop.run(_watched(port, process, queues, stagger))
        after, ended = self._cpu(process), time.monotonic_ns()
        gc.enable()
        spent = [end - start for end, start in zip(after, before, strict=True)]
        return Load(
            seconds=(ended - began) / 1e9,
            turns=len(seen),
            deltas=sum(len(each.delays) for each in seen),
            cpu_ms=spent[0] / 1e6,
            delays=sorted(delay / 1e6 for each in seen for delay in each.delays),
            firsts=sorted(each.first / 1e6 for each in seen),
            pss_mb=pss,
            shares=Shares(*(each / (ended - began) for each in spent)),
        )

    def _cpu(self, process: Process) -> tuple[int, int, int, int]:
        return (
            cpu_ns(process.pid),
            cpu_ns(self._emulator.process.pid),
            time.process_time_ns(),
            tree_cpu_ns(self._postgres.pid),
        )


def _queues(requests: list[Request], clients: int) -> list[list[Request]]:
    return [requests[number::clients] for number in range(clients)]


async def _watched(
    port: int, process: Process, queues: list[list[Request]], stagger: float
) -> tuple[list[Seen], float]:
    """Drive the load and return, with what was seen, the most memory the server held."""
    most = memory(process.pid).pss

    async def watch() -> None:
        nonlocal most
        while True:
            await asyncio.sleep(_MEMORY_EVERY)
            most = max(most, memory(process.pid).pss)

    watching = asyncio.create_task(watch())
    try:
        return await drive(port, queues, stagger), max(most, memory(process.pid).pss)
    finally:
        watching.cancel()
