"""Clients to machines: new ones, and idle ones kept a few seconds for the next request."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from fly_emulator.edge.splice import Wire
from fly_emulator.ports import MachineView


class Pool:
    """Idle connections per machine and internal port."""

    def __init__(self, keep: float, connect_timeout: float) -> None:
        self._keep = keep
        self._connect_timeout = connect_timeout
        self._idle: dict[tuple[str, int], dict[Wire, asyncio.TimerHandle]] = defaultdict(dict)

    async def connect(self, machine: MachineView, port: int) -> Wire:
        """Open a connection. Raises OSError (TimeoutError is one)."""
        host, number = machine.address(port)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout):
            _, wire = await loop.create_connection(Wire, host, number)
        return wire

    def take(self, machine: MachineView, port: int) -> Wire | None:
        """Return an idle connection, the one used last, if there is one that looks alive."""
        idle = self._idle[machine.id, port]
        while idle:
            wire, timer = idle.popitem()
            timer.cancel()
            wire.on_end = None
            if not wire.eof and not wire.pending and not wire.lost.done():
                return wire
            wire.close()
        return None

    def put(self, machine: MachineView, port: int, wire: Wire) -> None:
        """Keep a connection whose answer is complete."""
        if wire.eof or wire.lost.done():
            wire.close()
            return
        idle = self._idle[machine.id, port]
        idle[wire] = asyncio.get_running_loop().call_later(self._keep, self._expire, idle, wire)
        wire.on_end = lambda: self._expire(idle, wire)

    def drop(self, machine_id: str) -> None:
        """Close what is idle to a machine that went away."""
        for key in [key for key in self._idle if key[0] == machine_id]:
            for wire, timer in self._idle.pop(key).items():
                timer.cancel()
                wire.abort()

    def close(self) -> None:
        """Close everything."""
        for machine_id in {key[0] for key in self._idle}:
            self.drop(machine_id)

    @staticmethod
    def _expire(idle: dict[Wire, asyncio.TimerHandle], wire: Wire) -> None:
        timer = idle.pop(wire, None)
        if timer is not None:
            timer.cancel()
            wire.close()
