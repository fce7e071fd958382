"""What the emulator decides and what its machines print, one line each, in the form of `fly logs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from fly_emulator.clock import timestamp

Sink: TypeAlias = Callable[[str], None]
Source: TypeAlias = Literal["app", "runner", "proxy", "api", "health"]


def silence(line: str) -> None:
    """Drop a line."""
    del line


class Log:
    """Writes `time source[machine] region [level] message` to a sink."""

    def __init__(self, sink: Sink = silence) -> None:
        self._sink = sink

    def write(
        self, machine: str, region: str, message: str, *, source: Source = "runner", level: str = "info"
    ) -> None:
        """Write one line."""
        self._sink(f"{timestamp()} {source}[{machine}] {region} [{level}] {message}")
