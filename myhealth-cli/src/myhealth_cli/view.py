"""A turn on the screen: what is settled is printed for good, what is not lives in a region below.

The region is redrawn as text arrives. When the server replaces what was never settled, the region simply
shows something else; nothing that was printed has to be taken back.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.spinner import Spinner
from rich.text import Text

from myhealth_cli import describe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from myhealth_cli.client import Connection
    from myhealth_cli.machine import Change
    from myhealth_cli.transcript import Block, Transcript

_THINKING: Final = "thinking"
_WAKING: Final = "waking the machine"
_FRAME_S: Final = 1 / 15
_KEPT_LINES: Final = 4
"""Lines of the screen the region leaves free, for the spinner and the prompt."""


class View(Protocol):
    """Shows one turn: `update()` and `connection()` are called inside the context of `running()`."""

    def running(self, transcript: Transcript) -> AbstractAsyncContextManager[None]:
        """Show the transcript as it grows, until the block ends."""
        ...

    def update(self) -> None:
        """Take notice of new events."""
        ...

    def connection(self, change: Connection) -> None:
        """Show that the connection was lost, or is back."""
        ...

    def machine(self, change: Change) -> None:
        """Show what the server's machine does."""
        ...

    def stopping(self) -> None:
        """Show that the turn was asked to end."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Leave the screen to somebody else until the block ends."""
        ...


class LiveView:
    """Shows one turn on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._transcript: Transcript | None = None
        self._printed: set[str] = set()
        self._spinner = Spinner("dots", "", style="cyan")
        self._state = _THINKING
        self._live: Live | None = None

    @asynccontextmanager
    async def running(self, transcript: Transcript) -> AsyncGenerator[None]:
        """Show the transcript as it grows, until the block ends."""
        self._transcript = transcript
        self._begin()
        drawing = asyncio.create_task(self._draw())
        try:
            yield
        finally:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing
            self._clear()
        self._print_settled(transcript, everything=True)

    def _begin(self) -> None:
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, get_renderable=self._region
        )
        self._live.start()

    def _clear(self) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None

    async def _draw(self) -> None:
        while True:
            if self._live is not None:
                self._live.refresh()
            await asyncio.sleep(_FRAME_S)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Take the region off the screen until the block ends, and forget what was typed before."""
        self._clear()
        _forget_typing()
        try:
            yield
        finally:
            self._begin()

    def update(self) -> None:
        """Take notice of new events."""
        assert self._transcript is not None, "inside running()"
        self._print_settled(self._transcript)
        if self._state == _THINKING and self._transcript.blocks:
            self._state = ""

    def connection(self, change: Connection) -> None:
        """Show that the connection was lost, or is back."""
        self._state = f"reconnecting... ({change.reason})" if change.state == "lost" else ""

    def machine(self, change: Change) -> None:
        """Show what the server's machine does: the waiting below, what came of it for good."""
        if change.state == "waking":
            self._state = _WAKING
            return
        if self._state == _WAKING:
            self._state = _THINKING
        self._console.print(Text(str(change), style="dim"))

    def stopping(self) -> None:
        """Show that the turn was asked to end."""
        self._state = "stopping..."

    # --- for good ---

    def _print_settled(self, transcript: Transcript, *, everything: bool = False) -> None:
        """Print settled blocks in order, up to the first one that is not."""
        for block in transcript.blocks:
            if not (block.settled or everything):
                return
            if block.id not in self._printed:
                self._printed.add(block.id)
                print_block(self._console, block)

    # --- the region ---

    def _region(self) -> RenderableType:
        blocks = self._transcript.blocks if self._transcript is not None else []
        parts = [_render(block) for block in blocks if block.id not in self._printed and block.text]
        if self._state:
            self._spinner.update(text=Text(self._state, style="dim"))
            parts.append(self._spinner)
        return _Tail(Group(*parts), self._console)


def _forget_typing() -> None:
    """Drop what was typed during the answer: it was meant for the next prompt, not as a yes."""
    import termios  # noqa: PLC0415 - only on a terminal

    with suppress(termios.error, OSError, ValueError):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


class _Tail:
    """The last lines of something that may be longer than the screen."""

    def __init__(self, inner: RenderableType, console: Console) -> None:
        self._lines = console.render_lines(inner, console.options, pad=False)[
            -max(1, console.size.height - _KEPT_LINES) :
        ]

    def __rich__(self) -> RenderableType:
        from rich.segment import Segment, Segments  # noqa: PLC0415 - a cycle of types otherwise

        joined: list[Segment] = []
        for line in self._lines:
            joined += [*line, Segment.line()]
        return Segments(joined[:-1])


def print_block(console: Console, block: Block) -> None:
    """Print a settled block."""
    if block.text or block.kind == "call":
        console.print(_render(block))


def _render(block: Block) -> RenderableType:
    match block.kind:
        case "text":
            return Padding(Markdown(block.text), (0, 0, 1, 0))
        case "reasoning":
            return Padding(Text(block.text.strip(), style="dim italic"), (0, 0, 1, 2))
        case "call":
            call = Text.assemble(
                ("● ", "cyan"), (block.name, "bold cyan"), (f" {describe.arguments(block.text)}", "cyan")
            )
            if block.result is None:
                return call
            result = Text(
                f"└ {describe.result(block.result, block.text)}",
                style="dim",
                no_wrap=True,
                overflow="ellipsis",
            )
            return Group(call, Padding(result, (0, 0, 1, 2)))
