"""Many streams at once: all open together, and each whole and in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from .client import HEADERS, Emulator, ask, parse

STREAMS = 500


async def test_five_hundred_streams_are_open_at_once(emulator: Emulator) -> None:
    headers = {**HEADERS, "x-emulator-fault": "stall;after=3"}
    body = ask("[[emulator: tokens=5]]", stream=True)
    async with AsyncExitStack() as stack:

        async def hold() -> None:
            request = emulator.session.post(emulator.url + "/v1/messages", json=body, headers=headers)
            response = await stack.enter_async_context(request)
            seen = 0
            while seen < 3:
                seen += (await response.content.readline()) == b"event: content_block_delta\n"

        await asyncio.gather(*(hold() for _ in range(STREAMS)))
        assert (await emulator.control("GET", "stats")).json["open_streams"] == STREAMS


async def test_five_hundred_streams_are_whole_and_equal(emulator: Emulator) -> None:
    text = "[[emulator: tokens=20 delay_ms=10]]"
    answers = await asyncio.gather(*(emulator.post(ask(text, stream=True)) for _ in range(STREAMS)))
    after_start = {answer.body.split(b"\n\n", 1)[1] for answer in answers}
    assert len(after_start) == 1
    names = [event.name for event in parse(answers[0].body)]
    assert names.count("content_block_delta") == 20
    assert names[-1] == "message_stop"
    stats = (await emulator.control("GET", "stats")).json
    assert stats["models"]["claude-haiku-5-5"]["output_tokens"] == 20 * STREAMS
