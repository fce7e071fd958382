"""The end of an event stream whose reader takes nothing any more: whatever ends it, its task ends well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message

from agent_backend.events import Cursor
from agent_backend.telemetry import metrics
from agent_backend.web import sse
from agent_backend.web.limits import Limits
from agent_backend.web.sse import EventStreamResponse
from agent_backend.web.stream import CutOff, Placed

from .serving import settings_for

PATIENCE = 5.0


class StuckReader:
    """The other end of a stream: it reads so many messages, then nothing; `gone` is its connection's end."""

    def __init__(self, reads: int) -> None:
        self._reads = reads
        self.stuck = asyncio.Event()
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, _message: Message) -> None:
        if self._reads:
            self._reads -= 1
            return
        self.stuck.set()
        await asyncio.Event().wait()


async def _events(*, cut_off: bool) -> AsyncGenerator[list[Placed]]:
    yield [Placed(Cursor(1, 1), b'{"type":"X"}')]
    if cut_off:
        raise CutOff
    while True:
        yield [Placed(Cursor(1, 1), b'{"type":"X"}')]
        await asyncio.sleep(0)


def _scope(tmp_path: Path) -> dict[str, Any]:
    services = type("Services", (), {"limits": Limits(settings_for(tmp_path, LIMIT_FACTOR="1"))})
    return {"state": {"services": services}, "user_id": uuid4(), "client": ("127.0.0.1", 1), "headers": []}


@pytest.mark.parametrize("why", ["let go of", "of nobody's turn"])
async def test_a_reader_that_goes_while_it_is_told_the_end_ends_the_stream_quietly(
    tmp_path: Path, why: str
) -> None:
    before = metrics.streams_open
    reader = StuckReader(reads=2)  # the head and one event; what comes then waits
    events = _events(cut_off=why == "let go of")
    response = EventStreamResponse(events, "thread", until=time.time() + 60)
    serving = asyncio.create_task(response(_scope(tmp_path), reader.receive, reader.send))
    async with asyncio.timeout(PATIENCE):
        await reader.stuck.wait()
        reader.gone.set()
        await asyncio.wait([serving])
    assert not serving.cancelled(), "the server would log it as a fault of ours"
    assert serving.exception() is None
    assert metrics.streams_open == before


async def test_the_oldest_stream_makes_room_though_its_reader_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that lost its network leaves such streams behind; nobody tells us that it is gone."""
    monkeypatch.setattr(sse, "_GOODBYE_SECONDS", 0.05)
    scope, reader = _scope(tmp_path), StuckReader(reads=2)
    response = EventStreamResponse(_events(cut_off=False), "thread", until=time.time() + 60)
    serving = asyncio.create_task(response(scope, reader.receive, reader.send))
    limits: Limits = scope["state"]["services"].limits
    async with asyncio.timeout(PATIENCE):
        await reader.stuck.wait()
        monkeypatch.setattr("agent_backend.web.limits.STREAMS_PER_USER", 1)
        with limits.stream(scope, scope["user_id"], lambda: None):
            await asyncio.wait([serving])
    assert not serving.cancelled()
    assert serving.exception() is None
