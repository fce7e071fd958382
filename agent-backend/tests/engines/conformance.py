"""The laws of the `Engine` port, as tests for any engine.

Derive a class named `Test...` from `EngineConformance` and give it a fixture `rig`: the engine, and a
provider that can be made to behave in each of the ways of `Behaviour`.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import pytest

from agent_backend.engines.base import (
    BlockStart,
    BlockStop,
    Delta,
    Engine,
    HistoryMessage,
    StepDone,
    StepEvent,
    StepRequest,
    ToolSchema,
)
from agent_backend.errors import EngineError

Behaviour: TypeAlias = Literal[
    "text",  # answers in at least three pieces
    "thinking",  # thinks (signed), then answers
    "tool",  # says something and calls a tool with arguments
    "max_tokens",  # is cut in mid-answer by max_tokens
    "refusal",  # begins to answer, then refuses
    "stall",  # begins to answer, then neither goes on nor ends
    "rejected",  # refuses the request before any answer
    "error",  # begins to answer, then reports an error
    "cut",  # begins to answer, then the connection ends
]


class Rig(Protocol):
    """An engine and its provider."""

    @property
    def engine(self) -> Engine:
        """The engine under test, started or not."""
        ...

    def request(self, behaviour: Behaviour) -> StepRequest:
        """Return a request that makes the provider behave so."""
        ...

    async def wait_until_left(self) -> None:
        """Return when no answer is under way at the provider; fail after a few seconds."""
        ...

    async def asked(self) -> int:
        """Return how often the provider has been asked."""
        ...


SLEEP = ToolSchema(
    name="get_sleep",
    description="Sleep per night.",
    input_schema={"type": "object", "properties": {"days": {"type": "integer"}}, "required": []},
)


def step_request(text: str, **changes: Any) -> StepRequest:
    """Return a small valid request whose user says `text`."""
    content = msgspec.Raw(msgspec.json.encode([{"type": "text", "text": text}]))
    request = StepRequest(
        model="claude-sonnet-5-5",
        system="You are a coach.",
        tools=[SLEEP],
        messages=[HistoryMessage(role="user", content=content)],
        max_tokens=1024,
        thinking="off",
        session_id="s1",
        user_ref="u1",
    )
    return msgspec.structs.replace(request, **changes)


async def collect(engine: Engine, request: StepRequest) -> list[StepEvent]:
    """Make a call and return all its events."""
    events: list[StepEvent] = []
    async with aclosing(engine.stream(request)) as batches:
        async for batch in batches:
            assert batch, "an empty batch wakes the reader for nothing"
            events += batch
    return events


async def collect_until_error(engine: Engine, request: StepRequest) -> tuple[list[StepEvent], EngineError]:
    """Make a call that fails; return the events before the failure, and it."""
    events: list[StepEvent] = []

    async def read() -> None:
        async with aclosing(engine.stream(request)) as batches:
            async for batch in batches:
                events.extend(batch)

    with pytest.raises(EngineError) as failed:
        await read()
    return events, failed.value


def done(events: list[StepEvent]) -> StepDone:
    """Return the one StepDone, which must be the last event."""
    last = events[-1]
    assert isinstance(last, StepDone)
    assert not any(isinstance(event, StepDone) for event in events[:-1])
    return last


def check_order(events: list[StepEvent], *, complete: bool = True) -> dict[int, tuple[BlockStart, str]]:
    """Check the order of starts, deltas and stops; return each block's start and its deltas, joined."""
    blocks: dict[int, tuple[BlockStart, str]] = {}
    current: int | None = None
    for event in events:
        match event:
            case BlockStart(index=index):
                assert current is None
                assert index == len(blocks)
                blocks[index] = (event, "")
                current = index
            case Delta(index=index, text=text):
                assert index == current
                blocks[index] = (blocks[index][0], blocks[index][1] + text)
            case BlockStop(index=index):
                assert index == current
                current = None
            case StepDone():
                assert current is None
    assert current is None or not complete
    return blocks


def check_content(blocks: dict[int, tuple[BlockStart, str]], content: list[dict[str, Any]]) -> None:
    """Check that `content` is what was streamed, in order, less what is not fit for history."""
    streamed = iter(blocks.values())
    for kept in content:
        start, text = next(item for item in streamed if _matches(item, kept))
        if start.kind == "tool_use":
            assert (kept["id"], kept["name"]) == (start.id, start.name)
            assert kept["input"] == json.loads(text or "{}")


def _matches(item: tuple[BlockStart, str], kept: dict[str, Any]) -> bool:
    start, text = item
    if kept["type"] in ("text", "thinking"):
        return start.kind == kept["type"] and kept[kept["type"]] == text
    return start.kind in (kept["type"], "other")


class EngineConformance:
    """The laws."""

    async def test_text_arrives_in_order_and_adds_up(self, rig: Rig) -> None:
        events = await collect(rig.engine, rig.request("text"))
        end = done(events)
        blocks = check_order(events)
        check_content(blocks, end.content)
        assert end.stop_reason == "end_turn"
        assert [block["type"] for block in end.content] == ["text"]
        assert sum(isinstance(event, Delta) for event in events) >= 3

    async def test_usage_and_cost_are_reported(self, rig: Rig) -> None:
        end = done(await collect(rig.engine, rig.request("text")))
        assert end.usage.output_tokens > 0
        assert end.cost_usd_micros > 0
        assert end.model

    async def test_thinking_is_kept_with_its_signature(self, rig: Rig) -> None:
        events = await collect(rig.engine, rig.request("thinking"))
        end = done(events)
        check_content(check_order(events), end.content)
        assert [block["type"] for block in end.content] == ["thinking", "text"]
        assert end.content[0]["signature"]

    async def test_a_tool_call_arrives_whole(self, rig: Rig) -> None:
        events = await collect(rig.engine, rig.request("tool"))
        end = done(events)
        blocks = check_order(events)
        check_content(blocks, end.content)
        assert end.stop_reason == "tool_use"
        call = end.content[-1]
        assert call["type"] == "tool_use"
        assert call["input"]
        start = list(blocks.values())[-1][0]
        assert (start.kind, start.id, start.name) == ("tool_use", call["id"], call["name"])

    async def test_max_tokens_leaves_valid_history(self, rig: Rig) -> None:
        events = await collect(rig.engine, rig.request("max_tokens"))
        end = done(events)
        check_content(check_order(events), end.content)
        assert end.stop_reason == "max_tokens"
        assert all(block["type"] != "text" or block["text"].strip() for block in end.content)

    async def test_a_refusal_keeps_nothing(self, rig: Rig) -> None:
        events = await collect(rig.engine, rig.request("refusal"))
        end = done(events)
        check_order(events)
        assert (end.stop_reason, end.content) == ("refusal", [])

    async def test_a_rejected_request_fails_before_it_starts(self, rig: Rig) -> None:
        events, error = await collect_until_error(rig.engine, rig.request("rejected"))
        assert events == []
        assert not error.started
        assert not error.retryable

    @pytest.mark.parametrize("behaviour", ["error", "cut"])
    async def test_a_failure_in_mid_answer_ends_it_and_is_not_retried(
        self, rig: Rig, behaviour: Behaviour
    ) -> None:
        request = rig.request(behaviour)
        before = await rig.asked()
        events, error = await collect_until_error(rig.engine, request)
        check_order(events, complete=False)
        assert any(isinstance(event, Delta) for event in events)
        assert not any(isinstance(event, StepDone) for event in events)
        assert error.started
        assert error.retryable
        assert await rig.asked() == before + 1

    async def test_errors_carry_nothing_of_the_conversation(self, rig: Rig) -> None:
        request = rig.request("rejected")
        _, error = await collect_until_error(rig.engine, request)
        said = json.loads(bytes(request.messages[-1].content))[0]["text"]
        assert said not in str(error)
        assert request.system not in str(error)

    async def test_closing_the_iterator_leaves_the_provider(self, rig: Rig) -> None:
        stream = rig.engine.stream(rig.request("stall"))
        await anext(stream)
        await stream.aclose()
        await rig.wait_until_left()

    async def test_cancelling_the_task_leaves_the_provider(self, rig: Rig) -> None:
        arrived = asyncio.Event()

        async def read() -> None:
            async with aclosing(rig.engine.stream(rig.request("stall"))) as batches:
                async for _ in batches:
                    arrived.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(arrived.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await rig.wait_until_left()

    async def test_start_and_aclose_may_be_called_again(self, rig: Rig) -> None:
        await rig.engine.start()
        await rig.engine.start()
        assert done(await collect(rig.engine, rig.request("text")))
        await rig.engine.aclose()
        await rig.engine.aclose()

    async def test_aclose_fails_calls_under_way(self, rig: Rig) -> None:
        stream = rig.engine.stream(rig.request("stall"))
        await anext(stream)
        await rig.engine.aclose()
        with pytest.raises(EngineError):
            await anext(stream)
        await rig.wait_until_left()

    async def test_calls_do_not_mix(self, rig: Rig) -> None:
        request = rig.request("text")
        for events in await asyncio.gather(*(collect(rig.engine, request) for _ in range(5))):
            check_content(check_order(events), done(events).content)
