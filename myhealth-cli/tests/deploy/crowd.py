"""People who talk through deploys, and keep for each question what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Self
from uuid import uuid4

from myhealth_cli import events
from myhealth_cli.client import Client, Connection, Patience
from myhealth_cli.deploy.probe import prepare
from myhealth_cli.tokens import Issuer, SignedIn
from myhealth_cli.transcript import Transcript

_ACCOUNTS = 10
_PATIENCE_S = 90.0


@dataclass
class Turn:
    """One turn as its client saw it. Times are seconds since the epoch; `error`: the code it failed with.

    `text` is what stands on its screen in the end.
    """

    id: str
    began: float
    ended: float = 0.0
    characters: int = 0
    text: str = ""
    error: str | None = None
    answered: bool = False
    reconnects: int = 0


@dataclass
class Question:
    """What somebody wants to know: asked again, as a new turn, after a failure that was told."""

    turns: list[Turn] = field(default_factory=list[Turn])

    @property
    def answered(self) -> bool:
        return bool(self.turns) and self.turns[-1].answered


class Crowd:
    """`size` conversations at once, by ten people. An async context manager: they talk while it lasts."""

    def __init__(self, url: str, issuer: Issuer, size: int, seed: int = 1) -> None:
        self._url = url
        self._issuer = issuer
        self._size = size
        self._random = random.Random(seed)
        self._over = False
        self._may_talk = asyncio.Event()
        self._quiet = asyncio.Condition()
        self._busy = 0
        self.questions: list[Question] = []

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        clients: list[Client] = []
        for n in range(_ACCOUNTS):
            signed_in = SignedIn(self._issuer, f"person-{n}@example.com")
            client = Client(self._url, signed_in, Patience(total_s=_PATIENCE_S))
            clients.append(await self._stack.enter_async_context(client))
            await prepare(client)
        self._may_talk.set()
        self._tasks = [asyncio.create_task(self._converse(clients[n % _ACCOUNTS])) for n in range(self._size)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let everybody end what they have begun."""
        self._over = True
        self._may_talk.set()
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        if kind is None:
            assert ended == [None] * self._size

    async def hush(self) -> None:
        """Let nobody begin a turn, and wait until everybody has their answer."""
        self._may_talk.clear()
        async with self._quiet:
            await self._quiet.wait_for(lambda: not self._busy)

    def go_on(self) -> None:
        """Let them talk again."""
        self._may_talk.set()

    @property
    def turns(self) -> list[Turn]:
        return [turn for question in self.questions for turn in question.turns]

    async def _converse(self, client: Client) -> None:
        while not self._over:
            question = Question()
            self.questions.append(question)
            while not question.answered:
                await self._may_talk.wait()
                if self._over and not question.turns:
                    self.questions.remove(question)
                    return
                self._busy += 1
                try:
                    await self._ask(client, question)
                finally:
                    async with self._quiet:
                        self._busy -= 1
                        self._quiet.notify_all()
                # What a person reads and types meanwhile.
                await asyncio.sleep(self._random.uniform(0.5, 2.5))

    @staticmethod
    async def _ask(client: Client, question: Question) -> None:
        session, turn_id = uuid4(), uuid4()
        turn = Turn(str(turn_id), time.time())
        question.turns.append(turn)
        screen = Transcript()
        await client.put_session(session)
        async with aclosing(client.send(session, turn_id, f"Question {turn_id}.")) as items:
            async for item in items:
                if not isinstance(item, Connection):
                    screen.apply(item)
                match item:
                    case events.TextContent():
                        turn.characters += len(item.delta)
                    case Connection(state="lost"):
                        turn.reconnects += 1
                    case events.RunError():
                        turn.error = item.code or item.message
                    case events.RunFinished():
                        turn.answered = turn.characters > 0 and (
                            item.outcome is None or item.outcome.type == "success"
                        )
                    case _:
                        pass
        turn.ended = time.time()
        turn.text = "".join(block.text for block in screen.blocks if block.kind == "text")
