"""Time: compressed where Fly thinks in minutes, as it is everywhere else."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec


class TimeScale(msgspec.Struct, frozen=True, kw_only=True):
    """How many real seconds stand for one of Fly's minutes.

    It is for what Fly does every few minutes (autostop). Stop timeouts, checks, back-off and leases run in
    real seconds: the program under test knows them, and its own timers are not compressed.
    """

    minute: float = 60.0

    def real(self, seconds: float) -> float:
        """Say how long Fly's `seconds` last here."""
        return seconds * self.minute / 60.0


def now_ms() -> int:
    """Milliseconds since 1970, as in the API's events."""
    return int(time.time() * 1000)


def timestamp() -> str:
    """Date and time as the API writes them, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
