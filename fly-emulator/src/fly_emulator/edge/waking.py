"""Starting machines for requests: one start, however many requests wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fly_emulator.edge.loads import Signal
from fly_emulator.errors import EmulatorError
from fly_emulator.ports import FleetView, MachineView

MachineLog = Callable[[MachineView, str, str], None]
"""Takes the machine, a level and a message."""


class Waker:
    """Starts under way. A start goes on when the request that asked for it is gone."""

    def __init__(self, fleet: FleetView, timeout: float, changed: Signal, log: MachineLog) -> None:
        self._fleet = fleet
        self._timeout = timeout
        self._changed = changed
        self._log = log
        self._tasks: dict[str, asyncio.Task[str | None]] = {}
        self.starts = 0
        """Machines this edge has asked to start."""

    def __contains__(self, machine_id: str) -> bool:
        return machine_id in self._tasks

    def begin(self, machine: MachineView, port: int) -> asyncio.Task[str | None]:
        """Start it, or join the start under way. The task's result is an error in Fly's words, or None."""
        task = self._tasks.get(machine.id)
        if task is None:
            task = asyncio.create_task(self._wake(machine, port), name=f"wake {machine.id}")
            self._tasks[machine.id] = task
        return task

    async def close(self) -> None:
        """Give up all starts."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wake(self, machine: MachineView, port: int) -> str | None:
        try:
            error = await self._up(machine, port)
        finally:
            del self._tasks[machine.id]
            self._changed.notify()
        if error is not None:
            self._log(machine, "error", error)
        return error

    async def _up(self, machine: MachineView, port: int) -> str | None:
        clock = time.monotonic
        began = clock()
        if machine.state in {"stopped", "suspended"}:
            self.starts += 1
            self._log(machine, "info", "Starting machine")
            try:
                async with asyncio.timeout(self._timeout):
                    await self._fleet.start(machine.id)
            except TimeoutError:
                return f"[PM03] timed out waiting for the machine to start (after {clock() - began:.3f}s)"
            except EmulatorError as error:
                return f"[PM07] failed to change machine state: {error.problem}"
            self._log(machine, "info", f"machine started in {clock() - began:.9f}s")
        left = self._timeout - (clock() - began)
        if await machine.wait_healthy(port, left):
            self._log(machine, "info", f"machine became reachable in {clock() - began:.9f}s")
            return None
        if machine.state in {"starting", "started"}:
            return (
                f"[PM05] failed to connect to machine: gave up after 15 attempts (in {clock() - began:.9f}s)"
            )
        return f"[PM08] machine is in a non-startable state: {machine.state}"
