"""Something changed: whoever waits looks again."""

from __future__ import annotations

import asyncio


class Broadcast:
    """Wakes all who wait. Take `ticket` before looking, so that no change falls in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Tell of a change."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    @property
    def ticket(self) -> asyncio.Event:
        """An event that the next change sets."""
        return self._event
