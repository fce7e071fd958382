"""Notices that this process stood still: frozen and thawed by its host, with no signal before or after.

After a thaw sockets may be dead though they look alive, the lease may be somebody else's, and clocks may have
jumped or lag. What shows it depends on how we were frozen: a stopped process finds its timers late, a
machine restored from a snapshot finds its clocks apart, or only the database's clock ahead of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PERIOD_SECONDS = 1.0
"""Between two looks at the clocks."""


class Clocks:
    """Compares clocks between sightings; pure. Differences up to `tolerance` seconds are a busy machine's."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._last: tuple[float, float] | None = None
        self._database: float | None = None

    def forget(self) -> None:
        """Begin anew: the difference up to now is known, and must not be told again."""
        self._last = self._database = None

    def tick(self, monotonic: float, wall: float, expected: float) -> float:
        """Return how many seconds we seem to have stood still since the last tick; 0 if we did not.

        `expected`: what should have passed on the monotonic clock.
        """
        last, self._last = self._last, (monotonic, wall)
        if last is None:
            return 0.0
        passed = monotonic - last[0]
        late = passed - expected
        apart = abs((wall - last[1]) - passed)
        return max((each for each in (late, apart) if each > self._tolerance), default=0.0)

    def compare(self, database: float, monotonic: float) -> float:
        """Return how far the database's clock has moved against ours since the last time; 0 if it has not.

        A snapshot's clocks stand still together: only somebody else's clock tells that time has passed.
        """
        offset = database - monotonic
        last, self._database = self._database, offset
        apart = 0.0 if last is None else abs(offset - last)
        return apart if apart > self._tolerance else 0.0


async def watch(clocks: Clocks, on_thaw: Callable[[float], None]) -> None:
    """Look at the clocks for ever; tell `on_thaw` for how many seconds we stood still."""
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        stood_still = clocks.tick(time.monotonic(), time.time(), PERIOD_SECONDS)
        if stood_still:
            on_thaw(stood_still)
