"""Time that tests can advance."""

import time
from datetime import UTC, datetime


class Clock:
    """The wall clock, ahead of real time by what `advance` added (or behind)."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.offset

    def stamp(self) -> str:
        """Date and time as the API writes them."""
        return datetime.fromtimestamp(self(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.offset += seconds
