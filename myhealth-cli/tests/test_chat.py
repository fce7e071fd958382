from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from io import StringIO
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from rich.console import Console

from myhealth_cli import events
from myhealth_cli.approvals import Approvals
from myhealth_cli.client import Client, Connection, Patience, RefusedError, UnreachableError
from myhealth_cli.consent import agree
from myhealth_cli.events import Event
from myhealth_cli.ids import uuid7
from myhealth_cli.plain import PlainView
from myhealth_cli.tokens import GivenToken, TokenError
from myhealth_cli.transcript import Transcript, blocks_of
from myhealth_cli.turn import show

from .devprocess import PATIENCE_S, Dev, environment
from .ports import free_port

QUESTION = "How many steps did I walk in the last 14 days?"
SLOWLY = f"{QUESTION} [[emulator: delay_ms=50]]"
"""Leaves a busy machine the time to do something before the answer has ended."""


@pytest.fixture
async def client(stack: Dev) -> AsyncGenerator[Client]:
    async with Client(stack.url, stack.tokens()) as connected:
        yield connected


async def ask(
    client: Client,
    session: UUID,
    turn: UUID,
    question: str = QUESTION,
    watch: Callable[[Event], None] = lambda _: None,
) -> tuple[Transcript, list[Event], list[str]]:
    """Ask, and return the transcript, the events, and what became of the connection."""
    transcript, seen, connection = Transcript(), list[Event](), list[str]()
    async with aclosing(client.send(session, turn, question)) as items:
        async for item in items:
            if isinstance(item, Connection):
                connection.append(item.state)
            else:
                seen.append(item)
                transcript.apply(item)
                watch(item)
    return transcript, seen, connection


async def settled(client: Client, session: UUID) -> list[tuple[str, str, str | None]]:
    history = await client.history(session)
    own = [i for i, message in enumerate(history.messages) if message.role == "user"][-1]
    return [(block.id, block.text, block.result) for block in blocks_of(history.messages[own + 1 :])]


def told(transcript: Transcript) -> list[tuple[str, str, str | None]]:
    """Return the blocks; arguments as the server keeps them, without the spaces the model wrote."""
    return [
        (block.id, compact(block.text) if block.kind == "call" else block.text, block.result)
        for block in transcript.blocks
    ]


def compact(text: str) -> str:
    return msgspec.json.encode(msgspec.json.decode(text)).decode()


async def test_a_turn_streams_and_is_what_the_server_keeps(client: Client) -> None:
    session, turn = uuid7(), uuid7()
    await client.put_session(session)
    transcript, seen, connection = await ask(client, session, turn)
    assert transcript.ending == "success"
    assert connection == []
    assert sum(isinstance(each, events.TextContent) for each in seen) > 3, "it comes bit by bit"
    assert told(transcript) == await settled(client, session)
    again, _, _ = await ask(client, session, turn)
    assert told(again) == told(transcript)
    assert (await client.turn(session, turn)).state == "completed"


async def test_the_chat_outlives_a_backend_killed_in_mid_answer(stack: Dev, client: Client) -> None:
    session, turn = uuid7(), uuid7()
    await client.put_session(session)
    said: list[str] = []

    def kill_in_the_middle(event: Event) -> None:
        # Words are counted, not events: on a busy machine deltas come together.
        if isinstance(event, events.TextContent):
            before = len("".join(said).split())
            said.append(event.delta)
            if before < 5 <= len("".join(said).split()):
                stack.backend().kill()

    transcript, seen, connection = await ask(client, session, turn, SLOWLY, kill_in_the_middle)
    assert connection == ["lost", "back"]
    assert any(isinstance(each, events.MessagesSnapshot) for each in seen)
    assert transcript.ending == "success"
    assert told(transcript) == await settled(client, session)


@asynccontextmanager
async def cutting(stack: Dev, every: int) -> AsyncGenerator[str]:
    """Relay to the stack, and cut each connection after `every` bytes of answer, then twice as many, ..."""
    budgets = (every << n for n in range(64))
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            relays.add(task)
        budget = next(budgets)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", stack.port)

        async def upstream() -> None:
            while data := await reader.read(65536):
                up_writer.write(data)
            up_writer.close()

        sending = asyncio.create_task(upstream())
        try:
            while budget > 0 and (data := await up_reader.read(min(65536, budget))):
                budget -= len(data)
                writer.write(data)
                await writer.drain()
        finally:
            sending.cancel()
            up_writer.transport.abort()
            writer.transport.abort() if budget <= 0 else writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for each in relays:
        each.cancel()
    await asyncio.gather(*relays, return_exceptions=True)


# On a busy machine deltas come together, and there is less to cut: three cuts of the last take 6,300 bytes.
@pytest.mark.parametrize("every", [1, 700, 901])
async def test_cuts_lose_and_double_nothing(stack: Dev, client: Client, every: int) -> None:
    session, turn = uuid7(), uuid7()
    await client.put_session(session)
    async with cutting(stack, every) as url, Client(url, stack.tokens()) as cut:
        transcript, seen, connection = await ask(cut, session, turn)
    _, uncut, _ = await ask(client, session, turn)
    assert connection.count("lost") > 2
    assert joined(seen) == joined(uncut)
    assert told(transcript) == await settled(client, session)


def joined(seen: list[Event]) -> list[object]:
    """Return the events with deltas of one message put together: only their cutting up may differ."""
    out: list[object] = []
    for event in seen:
        if (
            isinstance(event, (events.TextContent, events.ReasoningContent))
            and out
            and isinstance(last := out[-1], list)
            and last[0] == event.message_id
        ):
            last[1] += event.delta
        elif isinstance(event, (events.TextContent, events.ReasoningContent)):
            out.append([event.message_id, event.delta])
        else:
            out.append(event)
    return out


async def test_a_wrong_token_a_wrong_body_and_no_server(stack: Dev, client: Client) -> None:
    async with Client(stack.url, GivenToken("nonsense")) as stranger:
        with pytest.raises(TokenError, match="refuses the token"):
            await stranger.sessions()
    with pytest.raises(RefusedError, match="no such turn") as refused:
        await client.turn(uuid7(), uuid7())
    assert refused.value.status == 404
    async with Client(f"http://127.0.0.1:{free_port()}", stack.tokens(), Patience(total_s=0.3)) as nobody:
        with pytest.raises(UnreachableError):
            await nobody.sessions()


async def test_ids_of_one_millisecond_differ_and_sort_by_time() -> None:
    made = [uuid7() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {each.version for each in made} == {7}
    assert all(a.int >> 80 <= b.int >> 80 for a, b in pairwise(made))


class Terminal:
    """`myhealth chat` on a pseudo-terminal; `screen` is everything it has written."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self.screen = ""

    def expect(self, text: str) -> None:
        """Wait until `text` has been written since the last expectation."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.screen:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._master], [], [], left)[0]
            assert ready, f"never: {text!r} in {self.screen!r}"
            try:
                self._read()
            except OSError:  # how Linux says that the other side has closed
                raise AssertionError(f"ended without {text!r}: {self.screen!r}") from None
        self.screen = self.screen.partition(text)[2]

    def ended(self) -> int:
        """Read until the end, because who writes to a terminal waits for it, and return the exit code."""
        with suppress(OSError):
            while select.select([self._master], [], [], PATIENCE_S)[0]:
                self._read()
        return self.process.wait(timeout=PATIENCE_S)

    def _read(self) -> None:
        data = os.read(self._master, 65536)
        self.screen += data.decode("utf-8", "replace")
        if b"\x1b[6n" in data:  # where is the cursor? Without an answer there is no line below the prompt.
            os.write(self._master, b"\x1b[8;1R")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())


@contextmanager
def terminal(folder: Path, *arguments: str, **env: str) -> Generator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    process = subprocess.Popen(
        [sys.executable, "-m", "myhealth_cli", *arguments],
        env={**environment(folder), "TERM": "xterm-256color", **env},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=_own_terminal,  # noqa: PLW1509 - there is no other way to it, and no thread runs
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
        os.close(master)


def _own_terminal() -> None:
    """Make the pseudo-terminal the controlling one, so that Ctrl-C becomes SIGINT."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_the_terminal_chat(stack: Dev) -> None:
    with terminal(stack.folder, "chat", "--url", stack.url) as screen:
        screen.expect("Ctrl-C stops an answer")
        screen.expect("▸")
        screen.type(f"{SLOWLY}\r")
        screen.expect("get_daily_metrics")
        screen.expect("mean per day")
        screen.expect("[simulation]")
        stack.backend().kill()
        screen.expect("reconnecting...")
        screen.expect("No data:")
        screen.expect("▸")
        screen.type(f"{SLOWLY}\r")
        screen.expect("[simulation]")
        screen.type("\x03")
        screen.expect("Stopped.")
        screen.expect("▸")
        screen.type("/sessions\r")
        screen.expect("How many steps did I walk")
        screen.expect("▸")
        screen.type("/new\r")
        screen.expect("A new conversation.")
        screen.expect("▸")
        screen.type("/quit\r")
        assert screen.ended() == 0


GOAL = '[[emulator: tool=set_goal args={"kind":"steps_per_day","target":7500,"title":"Every day"}]]'


def test_the_chat_asks_before_the_coach_changes_something(stack: Dev) -> None:
    with terminal(stack.folder, "chat", "--url", stack.url, "--user", "goals", "--consent") as screen:
        for answer, outcome in (("perhaps\rn\r", "status declined"), ("y\r", "status saved")):
            screen.expect("▸")
            screen.type(f"I want to walk more. {GOAL}\r")
            screen.expect("The coach asks for your yes: set_goal")
            screen.expect("kind=steps_per_day, target=7500, title=Every day")
            screen.expect("Do it? y/n")
            screen.expect("▸")
            screen.type(answer)
            screen.expect(outcome)
        screen.expect("▸")
        screen.type("/quit\r")
        assert screen.ended() == 0


async def test_a_yes_that_comes_too_late_is_said_to_be(stack: Dev) -> None:
    async with Client(stack.url, stack.tokens("late")) as client:
        await agree(client, Console(), None, consent=True)
        session, turn, shown = uuid7(), uuid7(), StringIO()
        await client.put_session(session)

        async def another_was_quicker() -> str:
            (call,) = await client.waiting(session)
            await client.answer(session, call.id, yes=False)
            return "y"

        approvals = Approvals(client, session, turn, Console(file=shown), another_was_quicker)
        transcript = Transcript()
        await show(client.send(session, turn, GOAL), transcript, PlainView(StringIO()), approvals=approvals)
        assert transcript.ending == "success"
        assert "Too late" in shown.getvalue()


def test_the_chat_asks_for_consent_and_does_not_go_on_without(stack: Dev) -> None:
    newcomer = ("chat", "--url", stack.url, "--user", "newcomer")
    with terminal(stack.folder, *newcomer) as screen:
        screen.expect("Processing of your health data")
        screen.expect("eu-central-1")
        screen.expect("Do you agree? y/n")
        screen.expect("▸")
        screen.type("maybe\r")
        screen.expect("Do you agree? y/n")
        screen.expect("▸")
        screen.type("y\r")
        screen.expect("Anthropic, PBC")
        screen.expect("Do you agree? y/n")
        screen.expect("▸")
        screen.type("n\r")
        screen.expect("without your consent this does not work")
        assert screen.ended() == 1
    with terminal(stack.folder, *newcomer, "--consent") as screen:
        screen.expect("Agreed: Sharing with an artificial intelligence")
        screen.expect("Ctrl-C stops an answer")
        screen.expect("▸")
        screen.type("/quit\r")
        assert screen.ended() == 0


def test_the_terminal_shows_the_machine_asleep_and_awake(tmp_path: Path) -> None:
    with terminal(tmp_path, "dev", "--port", str(free_port()), IDLE_SECONDS="0.5") as screen:
        screen.expect("▸")
        screen.expect("message")  # only what changes is drawn: this word is part of no other state's line
        screen.type("How did I sleep last night?\r")
        screen.expect("waking the machine")
        screen.expect("· awake after ")
        screen.expect("· first token after ")
        screen.expect("asleep min")
        screen.expect("▸")
        screen.expect("last wake ")
        screen.type("/quit\r")
        assert screen.ended() == 0


def test_a_second_interrupt_leaves_at_once(stack: Dev) -> None:
    with terminal(stack.folder, "chat", "--url", stack.url) as screen:
        screen.expect("▸")
        screen.type(f"{SLOWLY}\r")
        screen.expect("get_daily_metrics")
        screen.type("\x03")
        screen.expect("stopping...")
        screen.type("\x03")
        # The answer may have stopped in time for the prompt to be the one that is left.
        assert screen.ended() in {0, 128 + signal.SIGINT}
