"""How long to wait for a model and when to ask it again.

A call is made again only while nothing of its answer has arrived, within a budget of time: there is no
idempotency upstream, so that a second call may be billed as well.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent_backend.errors import EngineError


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds allowed per phase of one call; a phase that runs out fails as `provider_<phase>_timeout`."""

    connect: float = 10.0
    headers: float = 60.0
    """From asking to the status line."""
    first_event: float = 60.0
    """From the status line to the first event."""
    idle: float = 60.0
    """Between two arrivals; the API's pings count."""
    total: float = 900.0
    """The whole call with its retries."""


class TransientError(EngineError):
    """A call that failed before any of its answer arrived, so that it may be made again.

    `retry_after` is what the provider asked for, in seconds; None if it asked for nothing.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        request_id: str | None = None,
        unbilled: bool = False,
    ) -> None:
        super().__init__(
            code, detail, retryable=True, status=status, request_id=request_id, unbilled=unbilled
        )
        self.retry_after = retry_after


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the waiting, in seconds. `attempts` counts the first one."""

    attempts: int = 4
    base: float = 0.5
    cap: float = 8.0
    budget: float = 30.0
    """All waits of one call together; a `retry-after` beyond what is left ends the call at once."""


class Retries:
    """The retries of one call. `random` gives numbers in [0, 1)."""

    def __init__(self, policy: RetryPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._failed = 0
        self._left = policy.budget

    def wait_after(self, error: TransientError) -> float | None:
        """Return how many seconds to wait before the next attempt, or None to give up.

        Without `retry-after`: exponential, with full jitter, so that clients spread out. With it: that
        long and up to `base` more.
        """
        self._failed += 1
        if self._failed >= self._policy.attempts:
            return None
        if error.retry_after is None:
            ceiling = min(self._policy.cap, self._policy.base * 2.0 ** (self._failed - 1))
            wait = ceiling * self._random()
        else:
            wait = error.retry_after + self._policy.base * self._random()
        if wait > self._left:
            return None
        self._left -= wait
        return wait
