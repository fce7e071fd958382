"""Ctrl-C and its relatives inside an event loop: whoever is responsible at the moment gets them."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Where SIGINT goes. The innermost `to()` block decides; SIGTERM and SIGHUP always end the task."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that ended the task."""
        self._handlers: list[Callable[[], None]] = []

    @contextmanager
    def installed(self) -> Generator[None]:
        """Handle signals for the current task until the block ends."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "inside a task"

        def end(number: int) -> None:
            # Only the first one: what follows must not disturb the cleaning up.
            if self.received is None:
                self.received = number
                task.cancel()

        def interrupt() -> None:
            if self._handlers and self.received is None:
                self._handlers[-1]()
            else:
                end(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        for number in _ENDING:
            loop.add_signal_handler(number, end, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, *_ENDING):
                loop.remove_signal_handler(number)

    @contextmanager
    def to(self, handler: Callable[[], None]) -> Generator[None]:
        """Send SIGINT to `handler` until the block ends."""
        self._handlers.append(handler)
        try:
            yield
        finally:
            self._handlers.remove(handler)
