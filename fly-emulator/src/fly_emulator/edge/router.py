"""From a port and what a request wants to a machine that can take it, waking one where none runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final, assert_never

from fly_emulator.edge.balance import Candidate, Forward, Refuse, Status, Wait, Wake, Want, decide
from fly_emulator.edge.loads import Loads, Signal
from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy_errors import no_candidate, no_such_machine
from fly_emulator.edge.waking import Waker
from fly_emulator.machine_config import Port, Service
from fly_emulator.ports import FleetView, MachineView, State

_STATUS: Final[dict[State, Status]] = {
    "started": "unready",
    "updating": "unready",
    "replacing": "unready",
    "starting": "waking",
    "creating": "waking",
    "restarting": "waking",
    "stopped": "asleep",
    "suspended": "asleep",
    "stopping": "leaving",
    "suspending": "leaving",
}
"""How the balancer sees a machine that does not serve. A `created` one is not started by a request: Fly
logs "unable to start machine from current state: 'created'"."""
_SLACK: Final = 0.5
"""Seconds a request waits beyond the wake's own timeout, so that the wake's error is the one reported."""


class Placement:
    """A request's place on a machine; counts as load until released."""

    def __init__(self, machine: MachineView, service: Service, loads: Loads) -> None:
        self.machine = machine
        self.service = service
        self._loads: Loads | None = loads
        loads.take(machine.id, service.internal_port)

    @property
    def port(self) -> int:
        """The internal port."""
        return self.service.internal_port

    def release(self) -> None:
        """Count no more."""
        loads, self._loads = self._loads, None
        if loads is not None:
            loads.drop(self.machine.id, self.port)


class Search:
    """One request looking for a machine: what it wants, and what it has tried."""

    def __init__(self, port: int, want: Want, *, timeout: float | None = None) -> None:
        self.port = port
        self.want = want
        self.began = asyncio.get_running_loop().time()
        self.timeout = timeout
        """Bounds all waiting (`fly-replay: timeout=`)."""
        self.attempts = 0
        self.last: str | None = None
        self._avoid: set[str] = set()

    def failed(self, machine_id: str, error: str) -> bool:
        """Note a machine that could not take it; says whether it had failed before."""
        self.attempts += 1
        self.last = error
        again = machine_id in self._avoid
        self._avoid.add(machine_id)
        return again

    def wants(self) -> Want:
        """Return what is wanted now."""
        want = self.want
        return Want(
            force=want.force,
            prefer=want.prefer,
            regions=want.regions,
            force_region=want.force_region,
            exclude=want.exclude,
            avoid=frozenset(self._avoid),
        )


class Router:
    """Chooses machines. `draining` holds those that are soft-cordoned."""

    def __init__(self, fleet: FleetView, options: EdgeOptions, log: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.options = options
        self.region = options.region or fleet.primary_region
        self.changed = Signal()
        self.loads = Loads(self.changed)
        self.draining: set[str] = set()
        self._write = log
        self.waker = Waker(fleet, options.wake_timeout, self.changed, self.log)
        self._random = Random(options.seed)  # noqa: S311 - chance between equals, not secrets

    def log(self, machine: MachineView, level: str, message: str) -> None:
        """Write a line as `fly logs` shows it."""
        self._write(f"proxy[{machine.id}] {machine.region} [{level}]{message}")

    def log_error(self, text: str) -> None:
        """Write a line about a request that found no machine."""
        self._write(f"proxy {self.region} [error]{text}")

    def service(self, machine: MachineView, port: int) -> tuple[Service, Port] | None:
        """Return what a machine offers on a port of the edge."""
        for service in machine.config.services:
            for offered in service.ports:
                if covers(offered, port):
                    return service, offered
        return None

    def candidates(self, port: int) -> list[Candidate]:
        """Return every machine that offers the port and may be used, oldest first."""
        found: list[Candidate] = []
        for machine in self.fleet.machines():
            offered = self.service(machine, port)
            status = None if offered is None else self._status(machine, offered[0])
            if offered is None or status is None:
                continue
            service = offered[0]
            found.append(
                Candidate(
                    id=machine.id,
                    region=machine.region,
                    status=status,
                    load=self.loads.of(machine.id, service.internal_port),
                    soft=service.concurrency.soft_limit,
                    hard=service.concurrency.hard_limit,
                    autostart=service.autostart,
                    draining=machine.id in self.draining,
                    distance=self._distance(machine.region),
                )
            )
        return found

    async def place(self, search: Search) -> Placement:
        """Find a machine, waiting as long as the options say. Raises ProxyError."""
        while search.attempts < self.options.max_attempts:
            ticket = self.changed.ticket()
            order = self.options.wake_order
            decision = decide(self.candidates(search.port), search.wants(), self._random.choice, order)
            match decision:
                case Forward():
                    return self._forward(decision, search)
                case Wake(machine_id):
                    await self._wake(machine_id, search, ticket)
                case Wait(reason):
                    await self._wait(ticket, search, full=reason == "full")
                case Refuse():
                    await self._refuse(decision, search, ticket)
                case _ as never:
                    assert_never(never)
        raise no_candidate(search.attempts, search.last)

    async def pause(self, again: bool) -> None:  # noqa: FBT001 - whether the same machine is tried again
        """Leave a machine that failed a moment before it is tried again."""
        if again:
            await asyncio.sleep(self.options.retry_delay)

    def _forward(self, decision: Forward, search: Search) -> Placement:
        if decision.start is not None:
            sleeper = self._found(decision.start, search.port)
            self.waker.begin(sleeper[0], sleeper[1].internal_port)
        machine, service = self._found(decision.machine, search.port)
        return Placement(machine, service, self.loads)

    async def _wake(self, machine_id: str, search: Search, ticket: asyncio.Future[None]) -> None:
        machine, service = self._found(machine_id, search.port)
        task = self.waker.begin(machine, service.internal_port)
        left = self._left(search, self.options.wake_timeout + _SLACK)
        await asyncio.wait([task, ticket], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            error = task.result()
            if error is not None:
                await self.pause(search.failed(machine_id, error))

    async def _wait(self, ticket: asyncio.Future[None], search: Search, *, full: bool) -> None:
        limit = self.options.queue_timeout if full else self.options.wake_timeout
        await asyncio.wait([ticket], timeout=self._left(search, limit))

    def _left(self, search: Search, limit: float) -> float:
        """Return the seconds left to wait. Raises ProxyError when there are none."""
        if search.timeout is not None:
            limit = min(limit, search.timeout)
        left = search.began + limit - asyncio.get_running_loop().time()
        if left <= 0:
            raise no_candidate(search.attempts + 1, search.last)
        return left

    async def _refuse(self, decision: Refuse, search: Search, ticket: asyncio.Future[None]) -> None:
        """Let a moment pass before the next attempt: a deploy may be replacing the machines just now.

        Raises ProxyError where no attempt can help: no machine of that id, or none that offers the port.
        """
        if decision.code == "PR02" and search.want.force is not None:
            raise no_such_machine(search.want.force)
        search.attempts += 1
        if not any(self.service(machine, search.port) for machine in self.fleet.machines()):
            raise no_candidate(search.attempts, search.last)
        left = self._left(search, self.options.wake_timeout)
        await asyncio.wait([ticket], timeout=min(left, self.options.retry_delay))

    def _found(self, machine_id: str, port: int) -> tuple[MachineView, Service]:
        """Return a machine that was a candidate in this same step of the event loop."""
        machine = self.fleet.get(machine_id)
        offered = None if machine is None else self.service(machine, port)
        assert machine is not None
        assert offered is not None
        return machine, offered[0]

    def _distance(self, region: str) -> int:
        order = (self.region, *self.options.region_order)
        return order.index(region) if region in order else len(order)

    def _status(self, machine: MachineView, service: Service) -> Status | None:
        """Return how the balancer sees it; None: never a candidate."""
        if machine.cordoned:
            return None
        if machine.state == "started" and machine.healthy(service.internal_port):
            return "ready"
        status = _STATUS.get(machine.state)
        return "waking" if status in {"unready", "asleep"} and machine.id in self.waker else status


def covers(offered: Port, port: int) -> bool:
    """Say whether a port, or a range of them, has this number."""
    if offered.port is not None:
        return offered.port == port
    return offered.start_port is not None and offered.start_port <= port <= (offered.end_port or 65535)
