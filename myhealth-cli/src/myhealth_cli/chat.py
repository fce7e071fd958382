"""`myhealth chat`: a conversation in the terminal.

Ctrl-C while the coach answers stops the answer, a second one leaves; at the prompt one leaves.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final
from uuid import UUID

from rich.console import Console
from rich.markup import escape

from myhealth_cli.approvals import Approvals
from myhealth_cli.client import Client, RefusedError
from myhealth_cli.consent import agree
from myhealth_cli.errors import MyHealthError
from myhealth_cli.ids import uuid7
from myhealth_cli.plain import PlainView
from myhealth_cli.signals import Interrupts
from myhealth_cli.tokens import tokens_for
from myhealth_cli.transcript import Transcript, blocks_of
from myhealth_cli.turn import show
from myhealth_cli.view import LiveView, print_block

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from prompt_toolkit import PromptSession

    from myhealth_cli import events
    from myhealth_cli.client import Item
    from myhealth_cli.machine import Machine
    from myhealth_cli.view import View

HELP: Final = (
    "Ask about steps, energy, sleep, workouts, heart rate, trends: in German or English.\n"
    "[bold]/new[/] begins a conversation, [bold]/sessions[/] lists them, [bold]/quit[/] leaves; "
    "Ctrl-C stops an answer."
)
_LISTED: Final = 10


class _LeaveError(Exception):
    """The person wants to go."""


def run(url: str, token: str | None, user: str, *, consent: bool = False) -> int:
    """Chat with the server at `url`; return the exit code. Raises MyHealthError.

    `consent`: agree to what the server asks for, without being asked.
    """
    return asyncio.run(_run(url, token, user, consent=consent))


async def _run(url: str, token: str | None, user: str, *, consent: bool) -> int:
    interrupts = Interrupts()
    tokens = tokens_for(url, token, user)
    with interrupts.installed():
        try:
            async with Client(url, tokens) as client:
                await agree(client, Console(), terminal_reader(), consent=consent)
                await chat(client, interrupts)
        except asyncio.CancelledError:
            if interrupts.received is None:
                raise
            return 128 + interrupts.received
    return 0


async def chat(client: Client, interrupts: Interrupts, machine: Machine | None = None) -> None:
    """Talk until the person leaves; what the server's `machine` does is shown, where it can be watched.

    Raises MyHealthError when there is no server to talk to.
    """
    console = Console()
    terminal = terminal_reader(machine)
    read, live = terminal or _read_line, terminal is not None
    await Chat(client, interrupts, console, read, live=live, machine=machine).run()


def terminal_reader(machine: Machine | None = None) -> Callable[[], Awaitable[str]] | None:
    """Return what reads a line from the person at the terminal; None where nobody sits."""
    return _prompt(machine) if sys.stdin.isatty() and sys.stdout.isatty() else None


def _prompt(machine: Machine | None) -> Callable[[], Awaitable[str]]:
    """Return a reader with line editing. What is typed stays in memory: it is about someone's health."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - a tenth of a second that the first words hide
    from prompt_toolkit.formatted_text import ANSI  # noqa: PLC0415 - see above
    from prompt_toolkit.styles import Style  # noqa: PLC0415 - see above

    session: PromptSession[str] = PromptSession(
        bottom_toolbar=None if machine is None else lambda: _state_of(machine),
        style=Style([("bottom-toolbar", "noreverse fg:ansibrightblack")]),
    )

    async def read() -> str:
        prompt = session.prompt_async(ANSI("\x1b[1;36m▸\x1b[0m "), handle_sigint=False)
        if machine is None:
            return await prompt
        with machine.telling(lambda _: session.app.invalidate()):
            return await prompt

    return read


def _state_of(machine: Machine) -> str:
    """Return the line below the prompt: the machine's state, and how long it took to wake."""
    wake = machine.wake
    state = "asleep, a message wakes it" if machine.state == "asleep" else machine.state
    last = "" if wake is None else f" · last wake {wake.took * 1000:,.0f} ms"
    if wake is not None and wake.first_token is not None:
        last += f", first token {wake.first_token * 1000:,.0f} ms"
    return f"· {state}{last}"


async def _read_line() -> str:
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        raise EOFError
    return line


class Chat:
    """One person's conversation: reads lines, runs turns and commands."""

    def __init__(
        self,
        client: Client,
        interrupts: Interrupts,
        console: Console,
        read: Callable[[], Awaitable[str]],
        *,
        live: bool,
        machine: Machine | None = None,
    ) -> None:
        self._client = client
        self._interrupts = interrupts
        self._console = console
        self._read = read
        self._live = live
        self._machine = machine
        self._session: UUID | None = None
        self._listed: list[str] = []

    async def run(self) -> None:
        """Read and answer until the person leaves."""
        self._console.print(f"\n{HELP}\n", highlight=False)
        while True:
            try:
                text = (await self._read()).strip()
                if text.startswith("/"):
                    await self._command(text)
                elif text:
                    await self._ask(text)
            except (_LeaveError, EOFError, KeyboardInterrupt):
                return
            except RefusedError as error:
                self._console.print(f"[red]{escape(str(error))}[/]")
                if error.status == 401:
                    raise

    async def _command(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        match word:
            case "/quit" | "/exit":
                raise _LeaveError
            case "/new":
                self._session = None
                self._console.print("[dim]A new conversation.[/]")
            case "/sessions":
                await self._sessions(rest.strip())
            case _:
                self._console.print(HELP, highlight=False)

    # --- turns ---

    async def _ask(self, text: str) -> None:
        session, turn = self._session or uuid7(), uuid7()

        async def cancel() -> None:
            await self._client.cancel(session, turn)

        approvals = Approvals(self._client, session, turn, self._console, self._read)
        await self._show(self._items(session, turn, text), cancel, approvals)

    async def _items(self, session: UUID, turn: UUID, text: str) -> AsyncGenerator[Item]:
        """Send a message, in a session that is made first if there is none; yield the turn's stream."""
        if self._session is None:
            await self._client.put_session(session)
            self._session = session
        async with aclosing(self._client.send(session, turn, text)) as items:
            async for item in items:
                yield item

    async def _show(
        self, items: AsyncGenerator[Item], cancel: Callable[[], Awaitable[None]], approvals: Approvals
    ) -> None:
        """Show a turn's stream. The first interrupt stops the turn, the second raises _LeaveError."""
        transcript, view = Transcript(), self._view()
        task = asyncio.create_task(show(items, transcript, view, self._machine, approvals))
        stopping: list[asyncio.Task[None]] = []
        leaving = False

        def interrupt() -> None:
            nonlocal leaving
            if stopping:
                leaving = True  # also when the turn ends at this very moment
                task.cancel()
            else:
                stopping.append(asyncio.create_task(_quietly(cancel)))
                view.stopping()

        with self._interrupts.to(interrupt), _without_echo() if self._live else nullcontext():
            try:
                await asyncio.wait([task])
            finally:
                for each in (task, *stopping):
                    each.cancel()
                await asyncio.gather(task, *stopping, return_exceptions=True)
        if leaving:
            raise _LeaveError
        task.result()
        self._conclude(transcript)

    def _view(self) -> View:
        return LiveView(self._console) if self._live else PlainView(sys.stdout)

    def _conclude(self, transcript: Transcript) -> None:
        match transcript.ending:
            case "failed":
                self._console.print(f"[red]The turn failed: {escape(transcript.problem)}[/]\n")
            case "cancelled":
                self._console.print("[yellow]Stopped.[/]\n")
            case _:
                pass

    # --- sessions ---

    async def _sessions(self, chosen: str) -> None:
        """List the sessions, or go on with the one that was `chosen` by its number."""
        if chosen:
            await self._switch(chosen)
            return
        sessions = await self._client.sessions(_LISTED)
        self._listed = [each.id for each in sessions]
        for number, each in enumerate(sessions, 1):
            mark = "*" if self._session is not None and each.id == str(self._session) else " "
            words = escape(each.title or await self._first_words(each.id))
            when = each.created_at[:16].replace("T", " ")
            self._console.print(f"{mark}[bold]{number:2}[/] [dim]{when}[/] {words}", highlight=False)
        self._console.print("[dim]/sessions NUMBER goes on with one of them.[/]" if sessions else "None yet.")

    async def _first_words(self, session_id: str) -> str:
        history = await self._client.history(UUID(session_id))
        words = next((each.content for each in history.messages if each.role == "user" and each.content), "-")
        return " ".join(words.split())[:60]

    async def _switch(self, chosen: str) -> None:
        if not chosen.isdigit() or not 1 <= int(chosen) <= len(self._listed):
            self._console.print("[yellow]There is no session of this number; /sessions lists them.[/]")
            return
        self._session = UUID(self._listed[int(chosen) - 1])
        history = await self._client.history(self._session)
        for asked, answer in _turns(history.messages):
            self._console.print(f"[bold cyan]▸[/] {escape(asked)}", highlight=False)
            for block in blocks_of(answer):
                print_block(self._console, block)


def _turns(messages: list[events.Message]) -> list[tuple[str, list[events.Message]]]:
    """Return each user message with the messages that answer it."""
    turns: list[tuple[str, list[events.Message]]] = []
    for message in messages:
        if message.role == "user":
            turns.append((message.content or "", []))
        elif turns:
            turns[-1][1].append(message)
    return turns


async def _quietly(action: Callable[[], Awaitable[None]]) -> None:
    """Do it; a failure shows in the stream, which is being watched."""
    with suppress(MyHealthError):
        await action()


@contextmanager
def _without_echo() -> Generator[None]:
    """Keep what is typed during an answer from landing in the middle of it; the prompt will show it."""
    import termios  # noqa: PLC0415 - only on a terminal

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(file, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
