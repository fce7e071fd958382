"""Gates that answers wait at: a test opens one when it has done what has to come before."""

from collections.abc import Callable


class Gates:
    """Which gates are open, and who waits at those that are not. A gate that nobody has opened is shut."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def is_open(self, name: str) -> bool:
        """Say whether whoever comes may pass."""
        return name in self._open

    def waiting(self, name: str) -> int:
        """Return how many answers wait at it."""
        return len(self._waiting.get(name, []))

    def wait(self, name: str, opened: Callable[[], None]) -> None:
        """Call `opened` once, when the gate is opened."""
        self._waiting.setdefault(name, []).append(opened)

    def leave(self, name: str, opened: Callable[[], None]) -> None:
        """Wait no longer; without effect for who does not wait."""
        waiting = self._waiting.get(name, [])
        if opened in waiting:
            waiting.remove(opened)
        if not waiting:
            self._waiting.pop(name, None)

    def open(self, name: str) -> int:
        """Open a gate for good; return how many waited at it."""
        self._open.add(name)
        waiting = self._waiting.pop(name, [])
        for opened in waiting:
            opened()
        return len(waiting)

    def clear(self) -> None:
        """Shut all gates; who waits goes on waiting."""
        self._open.clear()
