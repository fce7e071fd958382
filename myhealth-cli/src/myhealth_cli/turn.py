"""Shows a turn's stream in a view, whatever kind of view that is."""

from __future__ import annotations

from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING

from myhealth_cli import events
from myhealth_cli.client import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from myhealth_cli.approvals import Approvals
    from myhealth_cli.client import Item
    from myhealth_cli.machine import Machine
    from myhealth_cli.transcript import Transcript
    from myhealth_cli.view import View


async def show(
    items: AsyncGenerator[Item],
    transcript: Transcript,
    view: View,
    machine: Machine | None = None,
    approvals: Approvals | None = None,
) -> None:
    """Put the events together in `transcript` and show it as it grows. Raises what the stream raises.

    What the server's `machine` does meanwhile is shown before the words that follow from it.
    Without `approvals` nobody is asked: a call that waits for a yes expires.
    """
    telling = nullcontext() if machine is None else machine.telling(view.machine)
    with telling:
        async with aclosing(items), view.running(transcript):
            async for item in items:
                if isinstance(item, Connection):
                    view.connection(item)
                    continue
                if machine is not None:
                    if machine.state != "awake":
                        await machine.look()
                    machine.received(item)
                transcript.apply(item)
                view.update()
                if approvals is not None and events.may_wait(item):
                    await approvals.ask(view)
