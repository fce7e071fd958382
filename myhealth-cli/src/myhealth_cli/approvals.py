"""Approvals: a call that needs the person's yes is shown with all of its arguments, and asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from myhealth_cli import describe
from myhealth_cli.client import RefusedError
from myhealth_cli.consent import yes_or_no

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from rich.console import Console

    from myhealth_cli.client import Client, ToolCall
    from myhealth_cli.view import View


class Approvals:
    """What one turn asks of the person; each call is asked for once."""

    def __init__(
        self, client: Client, session: UUID, turn: UUID, console: Console, read: Callable[[], Awaitable[str]]
    ) -> None:
        self._client = client
        self._session = session
        self._turn = str(turn)
        self._console = console
        self._read = read
        self._asked: set[str] = set()

    async def ask(self, view: View) -> None:
        """Ask for every call of the turn that waits for a yes; nothing in `view` moves meanwhile."""
        for call in await self._client.waiting(self._session):
            mine = call.turn_id == self._turn and call.kind == "approval"
            if mine and call.id not in self._asked:
                self._asked.add(call.id)
                with view.paused():
                    await self._ask(call)

    async def _ask(self, call: ToolCall) -> None:
        self._console.print(
            f"[bold]The coach asks for your yes: {escape(call.name)}[/]"
            f"\n  {escape(describe.whole(call.input))}\n[bold]Do it? y/n[/]",
            highlight=False,
        )
        yes = await yes_or_no(self._read)
        while yes is None:
            self._console.print("[bold]Do it? y/n[/]")
            yes = await yes_or_no(self._read)
        try:
            await self._client.answer(self._session, call.id, yes=yes)
        except RefusedError as error:
            if error.status != 409:
                raise
            self._console.print("[yellow]Too late: it was answered elsewhere, or it has expired.[/]")
