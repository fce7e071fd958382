"""Shows a turn's stream in a view, whatever kind of view that is."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from myhealth_cli.client import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from myhealth_cli.client import Item
    from myhealth_cli.transcript import Transcript
    from myhealth_cli.view import View


async def show(items: AsyncGenerator[Item], transcript: Transcript, view: View) -> None:
    """Put the events together in `transcript` and show it as it grows. Raises what the stream raises."""
    async with aclosing(items), view.running(transcript):
        async for item in items:
            if isinstance(item, Connection):
                view.connection(item)
            else:
                transcript.apply(item)
                view.update()
