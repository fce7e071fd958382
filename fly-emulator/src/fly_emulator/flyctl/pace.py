"""How long flyctl's own waits last here.

flyctl looks at a machine for ten seconds, waits ten between the steps of a bluegreen deploy, and polls at its
own pace. Before an emulator whose minute is shorter (`fly-emulator serve --minute`, which tells it as
FLY_EMULATOR_MINUTE), its seconds are shorter too: as short as the pauses in which a machine that crashes is
started again. What fly.toml or a flag says in seconds stays.
"""

from __future__ import annotations

import os
import time


def own(seconds: float) -> float:
    """Return real seconds for seconds of flyctl's own."""
    return seconds * _minute() / 60.0


def _minute() -> float:
    try:
        return float(os.environ.get("FLY_EMULATOR_MINUTE", "60"))
    except ValueError:
        return 60.0


class Backoff:
    """Waits longer from time to time, as flyctl's polling does (`jpillora/backoff`)."""

    def __init__(self, least: float, most: float) -> None:
        self._next, self._most = own(least), own(most)

    def wait(self, until: float) -> None:
        """Sleep, at most until a time of the monotonic clock."""
        time.sleep(max(0.0, min(self._next, until - time.monotonic())))
        self._next = min(2 * self._next, self._most)
