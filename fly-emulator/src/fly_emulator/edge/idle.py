"""`http_options.idle_timeout`: ends what has been silent too long, at the price of a look at the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class IdleTimer:
    """Calls back once nothing was touched for `seconds`; None: never."""

    def __init__(self, seconds: float | None, on_idle: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._on_idle = on_idle
        self._at = self._loop.time()
        self._handle = None if seconds is None else self._loop.call_later(seconds, self._look, seconds)

    def touch(self) -> None:
        """Note that something passed."""
        if self._seconds is not None:
            self._at = self._loop.time()

    def stop(self) -> None:
        """Call back no more."""
        if self._handle is not None:
            self._handle.cancel()

    def _look(self, seconds: float) -> None:
        left = self._at + seconds - self._loop.time()
        if left <= 0:
            self._on_idle()
        else:
            self._handle = self._loop.call_later(left, self._look, seconds)
