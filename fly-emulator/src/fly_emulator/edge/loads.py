"""How busy each machine is, and who waits for that to change."""

from __future__ import annotations

import asyncio
from collections import Counter


class Signal:
    """Something has changed: whoever waits decides again. Waiters wake in the order they began to wait."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def ticket(self) -> asyncio.Future[None]:
        """Return what the next `notify` completes; take it before looking, so that nothing is missed."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    def notify(self) -> None:
        """Wake everyone."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(None)


class Loads:
    """Requests in flight, or connections open, per machine and internal port."""

    def __init__(self, changed: Signal) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()
        self._changed = changed

    def take(self, machine_id: str, port: int) -> None:
        """Count one more."""
        self._counts[machine_id, port] += 1

    def drop(self, machine_id: str, port: int) -> None:
        """Count one less, and let a queued request see it."""
        self._counts[machine_id, port] -= 1
        if self._counts[machine_id, port] <= 0:
            del self._counts[machine_id, port]
        self._changed.notify()

    def of(self, machine_id: str, port: int) -> int:
        """Return the load of one service of a machine."""
        return self._counts[machine_id, port]

    def total(self, machine_id: str) -> int:
        """Return the load of a machine."""
        return sum(count for (owner, _), count in self._counts.items() if owner == machine_id)
