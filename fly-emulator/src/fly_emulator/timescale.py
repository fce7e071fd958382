"""How long a minute of Fly's lasts here: tests and demos need not wait five of them for an autostop."""

from __future__ import annotations

import msgspec


class TimeScale(msgspec.Struct, frozen=True):
    """Real seconds per minute of Fly's own periods; an app's timeouts and kill timeouts stay real."""

    minute_seconds: float = 60.0

    def minutes(self, count: float) -> float:
        """Return `count` Fly minutes in real seconds."""
        return count * self.minute_seconds
