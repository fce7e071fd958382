"""Writes an event stream to a socket on time, and breaks it where a fault says so.

One timer per stream and no task switch per delta: see "Cost" of the design page.
"""

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec
from aiohttp import web

from anthropic_emulator.events import frame
from anthropic_emulator.faults import Fault
from anthropic_emulator.gates import Gates

End = Literal["eof", "cut", "reset", "gone"]
"""How a stream ended: cleanly, by FIN without the last HTTP chunk, by RST, or because the client left."""

_HIGH_WATER: Final = 256 * 1024
_POLL: Final = 0.25
_EARLY: Final = 0.001
"""uvloop's timers count whole milliseconds and may fire this much early; asking again would spin."""
_SLICE: Final = 64 * 1024
FOREVER: Final = float("inf")
_BROKEN: Final = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"del\n\n'
_CONTINUATION: Final = range(0x80, 0xC0)

STAMP: Final = b"@0000000000000000000 "
"""Stands for the time a delta is written at: 19 digits, so that filling it in changes no length."""


class Step(msgspec.Struct, frozen=True):
    """Bytes to send `gap` seconds after the step before it was due."""

    gap: float
    data: bytes


class Gate(msgspec.Struct, frozen=True):
    """Where a stream waits: before the step after so many deltas, at the latest before its last one."""

    gates: Gates
    name: str
    after: int

    def place(self, steps: Sequence[Step]) -> int:
        """Return the index of the step that waits."""
        return max(0, min(self.after + 1, len(steps) - 1))


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first delta and between deltas; `jitter` is the share by which gaps vary."""

    ttft: float
    delay: float
    jitter: float = 0.0
    seed: int = 0

    def gaps(self) -> Iterator[float]:
        """Gap before each delta, without end."""
        yield self.ttft
        if not self.jitter or not self.delay:
            while True:
                yield self.delay
        varying = random.Random(self.seed)  # noqa: S311 - jitter
        while True:
            yield self.delay * (1 + self.jitter * (2 * varying.random() - 1))


def plan(
    opening: bytes, beats: Iterable[bytes], timing: Timing, fault: Fault | None, error: bytes
) -> tuple[list[Step], End]:
    """Lay out a stream in time. `error` is the `event: error` body of a mid-stream failure."""
    if fault is not None and fault.name == "slow":
        timing = msgspec.structs.replace(timing, delay=fault.delay_ms / 1000)
    steps = [Step(0.0, opening)]
    steps += [Step(gap, beat) for gap, beat in zip(timing.gaps(), beats, strict=False)]
    if len(steps) > 2:
        # The last beat only closes what the last delta ended: no time passes before it.
        steps[-1] = Step(0.0, steps[-1].data)
    return _break(steps, fault, error) if fault is not None else (steps, "eof")


def _break(steps: list[Step], fault: Fault, error: bytes) -> tuple[list[Step], End]:
    """Commit the fault after `fault.after` deltas, at the latest before the closing events."""
    at = max(1, min(fault.after + 1, len(steps) - 1))
    head, rest = steps[:at], steps[at:]
    end: End = "eof"
    match fault.name:
        case "overloaded":
            steps = [*head, Step(0.0, frame("error", error))]
        case "truncated":
            steps = head
        case "cut" | "reset":
            steps, end = head, fault.name
        case "malformed":
            steps = [*head, Step(0.0, _BROKEN), *rest]
        case "stall":
            pause = FOREVER if fault.seconds is None else fault.seconds
            steps = [*head, Step(pause, rest[0].data), *rest[1:]]
        case "split":
            steps = [piece for step in steps for piece in _split(step, fault)]
        case _:
            pass
    return steps, end


def _split(step: Step, fault: Fault) -> Iterator[Step]:
    """Cut a step at random places of mean distance `size`, and inside every UTF-8 sequence."""
    random_ = random.Random(fault.seed)  # noqa: S311 - where to cut
    data = step.data
    cuts = {n for n, byte in enumerate(data) if byte in _CONTINUATION}
    at = 0
    while (at := at + random_.randint(1, max(1, 2 * fault.size - 1))) < len(data):
        cuts.add(at)
    edges = [0, *sorted(cuts), len(data)]
    for n, (start, end) in enumerate(pairwise(edges)):
        # A step in the past makes the pump yield, so that every piece is a write of its own.
        yield Step(step.gap if n == 0 else 0.0, data[start:end])


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection with RST: linger for no time, then close."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Meter:
    """Tells how many of an answer's tokens are written when so many of its steps are."""

    __slots__ = ("_steps", "_tell", "_tokens")

    def __init__(self, tokens: int, steps: int, tell: Callable[[int], None]) -> None:
        self._tokens = tokens
        self._steps = steps
        self._tell = tell

    def at(self, steps: int) -> None:
        """Note that so many steps are written."""
        self._tell(-(-self._tokens * steps // self._steps))


class Pump:
    """Sends steps over a prepared chunked response, each at its time."""

    def __init__(
        self,
        response: web.StreamResponse,
        transport: asyncio.WriteTransport,
        *,
        coalesce: bool,
        stamped: bool = False,
        meter: Meter | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._meter = meter
        self._gate = gate
        self._chunked = response.chunked
        self._transport = transport
        self._coalesce = coalesce
        self._stamped = stamped
        self._loop = asyncio.get_running_loop()
        self._steps: Sequence[Step] = ()
        self._next = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[bool] = self._loop.create_future()

    async def run(self, steps: Sequence[Step]) -> bool:
        """Send everything. False when the client left before the end."""
        self._steps = steps
        self._due = self._loop.time()
        self._advance()
        self._tick()
        try:
            return await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._gate is not None:
                self._gate.gates.leave(self._gate.name, self._opened)

    def _advance(self) -> None:
        gate = self._gate
        if gate is not None and self._next == gate.place(self._steps) and not gate.gates.is_open(gate.name):
            self._due = FOREVER
            gate.gates.wait(gate.name, self._opened)
        elif self._next < len(self._steps):
            self._due += self._steps[self._next].gap

    def _opened(self) -> None:
        self._due = self._loop.time() + self._steps[self._next].gap
        if self._timer is not None:
            self._timer.cancel()
        self._tick()

    def _tick(self) -> None:
        if self._done.done():
            return
        if self._transport.is_closing():
            # What was due until we noticed has been written for nobody.
            while self._next < len(self._steps) and self._due <= self._loop.time():
                self._next += 1
                self._advance()
            self._told()
            self._done.set_result(False)
            return
        now = self._loop.time() + _EARLY
        if self._transport.get_write_buffer_size() < _HIGH_WATER:
            self._send_due(now)
            self._told()
            if self._next == len(self._steps):
                self._done.set_result(True)
                return
        # Long gaps are cut into polls, so that a stalled stream ends when its client does.
        self._timer = self._loop.call_at(min(max(self._due, now), now + _POLL), self._tick)

    def _told(self) -> None:
        if self._meter is not None:
            self._meter.at(self._next)

    def _send_due(self, now: float) -> None:
        """Send what is due; everything at once if it may be joined, up to a slice."""
        out: list[bytes] = []
        size = 0
        while self._next < len(self._steps) and self._due <= now and size < _SLICE:
            data = self._steps[self._next].data
            out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            size += len(data)
            self._next += 1
            self._advance()
            if not self._coalesce:
                break
        if out:
            data = b"".join(out)
            if self._stamped:
                data = data.replace(STAMP, b"@%019d " % time.monotonic_ns())
            self._transport.write(data)
