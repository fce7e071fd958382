"""The Machines API's rate limits: token buckets by action and machine (or app).

Source: superfly/docs working-with-machines-api, "Rate Limits": 1 a second with bursts of 3; Get Machine 5
a second with bursts of 10.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_USUAL = (1.0, 3.0)
_RATES = {"get": (5.0, 10.0)}


class RateLimits:
    """Counts requests; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def admit(self, action: str, scope: str) -> bool:
        """Take a token; False when there is none."""
        rate, burst = _RATES.get(action, _USUAL)
        now = self._clock()
        tokens, since = self._buckets.get((action, scope), (burst, now))
        tokens = min(burst, tokens + (now - since) * rate)
        admitted = tokens >= 1
        self._buckets[action, scope] = (tokens - 1 if admitted else tokens, now)
        return admitted
