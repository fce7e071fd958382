"""Wakes: what a request to a sleeping machine waits for, from its sending to what comes back.

The connection to the edge is open before the clock starts. Where the time goes inside the server is what it
says itself (`boot_seconds` at /metrics).
"""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import uvloop

from bench.client import Request, drive
from bench.cloud import Asleep, Cloud
from bench.figures import Samples
from bench.targets import Shape, Target

FIRST = Shape(deltas=10, delay_ms=0, ttft_ms=0)
_TIMEOUT_SECONDS = 60
_PHASE = re.compile(r'^boot_seconds\{phase="(\w+)"\} (\S+)$', re.MULTILINE)


class Sleeper(NamedTuple):
    """A side's app behind the local Fly. `metrics_port` is None where there are no metrics."""

    target: Target
    cloud: Cloud
    metrics_port: int | None = None

    def ready_ms(self) -> float:
        """Wake it with GET /readyz; return the time to the first byte of its 200."""
        self.cloud.fall_asleep("stopped")
        with socket.create_connection(("127.0.0.1", self.cloud.port), timeout=_TIMEOUT_SECONDS) as connection:
            began = time.monotonic_ns()
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            first = connection.recv(4096)
            ended = time.monotonic_ns()
        if not first.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"woken, it answers {first!r}\n{self.cloud.output()}")
        return (ended - began) / 1e6

    def first_token_ms(self, request: Request, asleep: Asleep) -> float:
        """Wake it with a turn; return the time to the turn's first delta."""
        self.cloud.fall_asleep(asleep)
        (seen,) = uvloop.run(drive(self.cloud.port, [[request]], 0))
        return seen.first / 1e6

    def turns(self, count: int) -> list[Request]:
        """Prepare turns for the wakes."""
        return self.target.turns(FIRST, count, self.cloud.port)

    def phases(self) -> dict[str, float]:
        """Return milliseconds from the start of the process to the end of each phase of its boot."""
        if self.metrics_port is None:
            return {}
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return {phase: float(seconds) * 1000 for phase, seconds in _PHASE.findall(text)}


class Wakes:
    """All wakes of a run. `stopped` and `suspended` hold each side's app for that kind of sleep."""

    def __init__(self, stopped: list[Sleeper], suspended: list[Sleeper]) -> None:
        self._stopped = stopped
        self._suspended = suspended
        self._phases: dict[str, list[float]] = {}

    def run(self, count: int, samples: Samples, boot: Callable[[], None]) -> None:
        """Wake each side so often in each way, in turn; the first time of each only fills caches.

        `boot` boots each side once: what a wake is held against is measured beside it, under the same load.
        """
        first = [each.turns(count + 1) for each in self._stopped]
        again = [each.turns(count + 1) for each in self._suspended]
        for number in range(count + 1):
            if number:
                boot()
            for sleeper, turns in zip(self._stopped, first, strict=True):
                ready = sleeper.ready_ms()
                token = sleeper.first_token_ms(turns[number], "stopped")
                if number:
                    samples.add("wake_ready_ms", sleeper.target.name, ready)
                    samples.add("wake_first_token_ms", sleeper.target.name, token)
                    self._note(sleeper.phases())
            for sleeper, turns in zip(self._suspended, again, strict=True):
                token = sleeper.first_token_ms(turns[number], "suspended")
                if number:
                    samples.add("wake_suspended_first_token_ms", sleeper.target.name, token)

    def _note(self, phases: dict[str, float]) -> None:
        for phase, milliseconds in phases.items():
            self._phases.setdefault(phase, []).append(milliseconds)

    def told(self) -> str:
        """Return the phases of our boot in their order, in words."""
        ordered = sorted((median(values), phase) for phase, values in self._phases.items())
        return "ours, woken by a turn, ms since exec: " + ", ".join(
            f"{phase} {middle:.0f}" for middle, phase in ordered
        )
