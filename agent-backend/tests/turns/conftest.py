"""Machines in this process, on a real database, with the emulator as their model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent_backend import consents, safety
from agent_backend.agents import Agent, Budget
from agent_backend.db.pool import Database
from agent_backend.engines.messages import MessagesEngine
from agent_backend.events import Cursor
from agent_backend.tools.base import Tool
from agent_backend.turns.machine import Machine
from agent_backend.turns.versions import DeviceTool
from agent_backend.web.stream import Follower, Placed

from ..consenting import give_consents
from ..emulator import emulator
from ..gate import Gate


@pytest.fixture(scope="session")
def emulator_url() -> Generator[str]:
    with emulator() as url:
        yield url


class Fleet:
    """Makes machines and stops them at the end of the test."""

    def __init__(self, database_url: str, emulator_url: str, stack: AsyncExitStack) -> None:
        self._database_url = database_url
        self._emulator_url = emulator_url
        self._stack = stack
        self.user = uuid4()
        self.catalogue = consents.load()
        self._asked = False

    async def machine(
        self,
        name: str = "one",
        *,
        lease: float = 30.0,
        commit: float = 0.02,
        tools: Mapping[str, Tool] | None = None,
        max_steps: int = 10,
        usd_micros_per_turn: int = 1_000_000,
        lock_timeout_ms: int = 10_000,
        connections: int = 8,
        approvals: tuple[str, ...] = (),
        call_seconds: float = 60.0,
    ) -> Machine:
        database = Database(
            self._database_url, min_size=1, max_size=connections, lock_timeout_ms=lock_timeout_ms
        )
        await database.open()
        self._stack.push_async_callback(database.close)
        if not self._asked:
            self._asked = True
            await give_consents(database, self.user, self.catalogue)
        agent = Agent(
            name="coach",
            description="for tests",
            engine="messages",
            model="claude-sonnet-5-5",
            max_tokens=4000,
            thinking="off",
            tools=tuple(tools or {}),
            budget=Budget(max_steps=max_steps, usd_micros_per_turn=usd_micros_per_turn),
            on_busy="enqueue",
            system="You are a test.",
            content_hash="0",
            device_tools=True,
            approvals=approvals,
        )
        engine = MessagesEngine(self._emulator_url, "sk-test")
        made = Machine(
            database,
            machine_id=name,
            lease_seconds=lease,
            group_commit_seconds=commit,
            agents={"coach": agent},
            tools=tools or {},
            engines={"messages": engine},
            consents=self.catalogue,
            call_seconds=call_seconds,
        )
        safety.warm()
        await made.start()
        self._stack.push_async_callback(made.stop)
        return made

    def gate(self, after: int = 0) -> Gate:
        """Return a gate at which an answer of the model waits, after so many deltas."""
        return Gate(self._emulator_url, after)

    async def agree(self, machine: Machine) -> None:
        """Let the user agree to everything that is asked for now."""
        await give_consents(machine.database, self.user, self.catalogue)

    async def session(self, machine: Machine, device_tools: list[DeviceTool] | None = None) -> UUID:
        session_id = uuid4()
        await machine.commands.put_session(
            self.user, session_id, agent="coach", title=None, device_tools=device_tools
        )
        return session_id

    async def send(self, machine: Machine, session_id: UUID, text: str, **more: Any) -> UUID:
        turn_id = uuid4()
        await machine.commands.put_turn(
            self.user, session_id, turn_id, text=text, on_busy=more.pop("on_busy", None), **more
        )
        return turn_id

    async def events(self, machine: Machine, session_id: UUID, after: Cursor | None = None) -> list[Placed]:
        """Return what stands in the log and the owner's memory now."""
        follower = Follower(machine, self.user, session_id, after)
        async with aclosing(follower.batches(wait=False)) as batches:
            return [placed async for batch in batches for placed in batch]

    async def follow(
        self, machine: Machine, session_id: UUID, after: Cursor | None = None
    ) -> AsyncGenerator[Placed]:
        """Follow one event at a time."""
        follower = Follower(machine, self.user, session_id, after)
        async with aclosing(follower.batches()) as batches:
            async for batch in batches:
                for placed in batch:
                    yield placed

    async def until_end(
        self, machine: Machine, session_id: UUID, after: Cursor | None = None, runs: int = 1
    ) -> list[Placed]:
        """Follow until so many runs have ended."""
        seen: list[Placed] = []
        async with aclosing(self.follow(machine, session_id, after)) as events:
            async for placed in events:
                seen.append(placed)
                if kind(placed) in ("RUN_FINISHED", "RUN_ERROR"):
                    runs -= 1
                    if not runs:
                        break
        return seen


def kind(placed: Placed) -> str:
    """Return an event's type."""
    return placed.event[9 : placed.event.index(b'"', 9)].decode()


@pytest.fixture
async def fleet(database_url: str, emulator_url: str) -> AsyncGenerator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(database_url, emulator_url, stack)
