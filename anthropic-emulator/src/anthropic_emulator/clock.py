"""Time that tests can advance."""

import time
from datetime import UTC, date, datetime, timedelta


class Clock:
    """Seconds and dates, ahead of real time by what `advance` added."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return time.monotonic() + self.offset

    def now(self) -> datetime:
        """Date and time, UTC."""
        return datetime.now(UTC) + timedelta(seconds=self.offset)

    def today(self) -> date:
        """Date in the machine's time zone."""
        return self.now().astimezone().date()

    def advance(self, seconds: float) -> None:
        """Go forward."""
        self.offset += seconds
