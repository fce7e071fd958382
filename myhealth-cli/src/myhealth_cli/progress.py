"""What takes long is shown: a spinner and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from myhealth_cli.importer import Progress


class Steps:
    """Shows the steps of a start, one after the other, with the time each one took."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str) -> Generator[None]:
        """Show that `what` is being done, then that it is done."""
        began = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(f"{what} ..."):
                yield
        else:
            yield
        self._done(what, began)

    @contextmanager
    def bar(self, what: str) -> Generator[Callable[[Progress], None]]:
        """Show how far an import is; the function given takes its progress."""
        began = time.monotonic()
        with import_bar(self._console, what) as update:
            yield update
        self._done(what, began)

    def _done(self, what: str, began: float) -> None:
        self._console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)


@contextmanager
def import_bar(console: Console, what: str) -> Generator[Callable[[Progress], None]]:
    """Show an import's bar, which disappears at its end; nothing where there is no terminal."""
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn  # noqa: PLC0415 - seldom needed
    from rich.progress import Progress as Bars  # noqa: PLC0415 - see above

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[sent]}"),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None, sent="")

        def update(progress: Progress) -> None:
            bars.update(
                task,
                completed=progress.read,
                total=progress.total or None,
                sent=f"{progress.sent:,} samples",
            )

        yield update
