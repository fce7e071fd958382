"""The log of an app as the API hands it out: the last lines, numbered, so that a reader can go on."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.log import Log, Sink, Source

KEPT: Final = 2000
PAGE: Final = 100


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    number: int
    machine: str
    region: str
    level: str
    source: Source
    message: str
    timestamp: str


class AppLog(Log):
    """Writes to the sink as others do, and keeps the last lines."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._count = 0

    def write(
        self, machine: str, region: str, message: str, *, source: Source = "runner", level: str = "info"
    ) -> None:
        """Write one line and keep it."""
        super().write(machine, region, message, source=source, level=level)
        self._count += 1
        entry = Entry(
            number=self._count,
            machine=machine,
            region=region,
            level=level,
            source=source,
            message=message,
            timestamp=timestamp(),
        )
        self._entries.append(entry)

    def page(
        self, after: int | None, *, machine: str | None = None, region: str | None = None
    ) -> list[Entry]:
        """Return the next lines after a number, oldest first; None: the last ones there are."""
        wanted = [
            entry
            for entry in self._entries
            if entry.number > (after or 0)
            and machine in (None, entry.machine)
            and region in (None, entry.region)
        ]
        return wanted[-PAGE:] if after is None else wanted[:PAGE]


def shown(entry: Entry) -> dict[str, Any]:
    """Write a line as `GET /api/v1/apps/APP/logs` does. Source: superfly/fly-go `resource_logs.go`."""
    return {
        "id": str(entry.number),
        "type": "log",
        "attributes": {
            "timestamp": entry.timestamp,
            "message": entry.message,
            "level": entry.level,
            "instance": entry.machine,
            "region": entry.region,
            "meta": {
                "instance": entry.machine,
                "region": entry.region,
                "event": {"provider": entry.source},
            },
        },
    }
