"""A model call as events: ids that agree with the snapshot, and what is kept of a call cut short."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.engines.base import BlockKind, BlockStart, BlockStop, Delta, StepDone, StepEvent, Usage
from agent_backend.transcript import StoredMessage, to_agui
from agent_backend.turns.step import StepWriter

Block = dict[str, Any]

_texts = st.lists(st.text(max_size=8), min_size=1, max_size=4)
_blocks = st.lists(
    st.one_of(
        st.tuples(st.just("text"), _texts),
        st.tuples(st.just("thinking"), _texts),
        st.tuples(st.just("redacted_thinking"), st.just([])),
        st.tuples(st.just("tool_use"), st.just(['{"a"', ":1}"])),
    ),
    max_size=6,
)


def _content(index: int, kind: str, pieces: list[str]) -> Block:
    match kind:
        case "text":
            return {"type": "text", "text": "".join(pieces)}
        case "thinking":
            return {"type": "thinking", "thinking": "".join(pieces), "signature": "s"}
        case "tool_use":
            return {"type": "tool_use", "id": f"toolu_{index}", "name": "probe", "input": {"a": 1}}
        case _:
            return {"type": "redacted_thinking", "data": "x"}


def _events(blocks: list[tuple[str, list[str]]]) -> tuple[list[StepEvent], list[Block]]:
    events: list[StepEvent] = []
    content: list[Block] = []
    for index, (kind, pieces) in enumerate(blocks):
        is_tool = kind == "tool_use"
        events.append(
            BlockStart(
                index,
                kind,  # pyright: ignore[reportArgumentType]
                f"toolu_{index}" if is_tool else None,
                "probe" if is_tool else None,
            )
        )
        events += [Delta(index, piece) for piece in pieces]
        events.append(BlockStop(index))
        # Engines leave out text without a character.
        if kind != "text" or "".join(pieces):
            content.append(_content(index, kind, pieces))
    events.append(StepDone(content=content, stop_reason="end_turn", usage=Usage(), model="m"))
    return events, content


def _play(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build messages as a client does."""
    messages: dict[str, dict[str, Any]] = {}
    for event in events:
        match event["type"]:
            case "TEXT_MESSAGE_START":
                messages[event["messageId"]] = {"role": "assistant", "content": ""}
            case "REASONING_MESSAGE_START":
                messages[event["messageId"]] = {"role": "reasoning", "content": ""}
            case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                messages[event["messageId"]]["content"] += event["delta"]
            case "TOOL_CALL_START":
                parent = messages.setdefault(event["parentMessageId"], {"role": "assistant"})
                parent.setdefault("toolCalls", []).append([event["toolCallId"], ""])
            case "TOOL_CALL_ARGS":
                for message in messages.values():
                    for call in message.get("toolCalls", []):
                        if call[0] == event["toolCallId"]:
                            call[1] += event["delta"]
            case _:
                pass
    return [{"id": key, **value} for key, value in messages.items()]


def _snapshot(content: list[Block]) -> list[dict[str, Any]]:
    stored = StoredMessage(1, "m1", "t", "assistant", json.dumps(content))
    out: list[dict[str, Any]] = []
    for message in to_agui([stored]):
        if message["role"] == "reasoning" and not message["content"]:
            continue  # a thinking block whose text the provider keeps to itself is not streamed
        if "toolCalls" in message:
            calls = [[c["id"], c["function"]["arguments"]] for c in message["toolCalls"]]
            message = {**message, "toolCalls": calls}  # noqa: PLW2901 - the form of `_play`
        out.append(message)
    return out


@given(_blocks, st.integers(1, 5))
def test_stream_and_snapshot_name_the_same_things_alike(
    blocks: list[tuple[str, list[str]]], size: int
) -> None:
    events, content = _events(blocks)
    writer = StepWriter("m1")
    out: list[bytes] = []
    for start in range(0, len(events), size):
        out += writer.feed(events[start : start + size])
    assert writer.done is not None
    assert not writer.showed_more_than(content)
    assert _play([json.loads(each) for each in out]) == _snapshot(content)


def test_deltas_that_arrive_together_become_one_event() -> None:
    writer = StepWriter("m1")
    (start, content) = writer.feed([BlockStart(0, "text"), Delta(0, "a"), Delta(0, "b")])
    assert json.loads(start)["type"] == "TEXT_MESSAGE_START"
    assert json.loads(content)["delta"] == "ab"
    assert [json.loads(each)["delta"] for each in writer.feed([Delta(0, "c")])] == ["c"]


def test_a_call_cut_short_keeps_text_and_drops_thinking_and_half_calls() -> None:
    writer = StepWriter("m1")
    writer.feed([BlockStart(0, "thinking"), Delta(0, "hm"), BlockStop(0)])
    writer.feed([BlockStart(1, "text"), Delta(1, "Hello")])
    assert writer.kept() == ([{"type": "text", "text": "Hello"}], True)
    writer.feed([BlockStop(1), BlockStart(2, "tool_use", "toolu_1", "probe"), Delta(2, "{")])
    assert writer.kept() == ([{"type": "text", "text": "Hello"}], True)
    kinds = [json.loads(each)["type"] for each in writer.closings()]
    assert kinds == ["REASONING_MESSAGE_END", "REASONING_END", "TEXT_MESSAGE_END", "TOOL_CALL_END"]


def test_text_alone_is_kept_whole() -> None:
    writer = StepWriter("m1")
    writer.feed([BlockStart(0, "text"), Delta(0, "Hel"), Delta(0, "lo")])
    assert writer.kept() == ([{"type": "text", "text": "Hello"}], False)


def test_what_the_engine_leaves_out_is_noticed() -> None:
    writer = StepWriter("m1")
    writer.feed([BlockStart(0, "text"), Delta(0, "  ")])
    assert writer.showed_more_than([])
    assert not writer.showed_more_than([{"type": "text", "text": "  "}])


@pytest.mark.parametrize("before", ["thinking", "redacted_thinking"])
def test_text_that_moves_up_because_unseen_blocks_are_dropped_is_told_of(before: BlockKind) -> None:
    """Thinking that is not shown has a place in the ids all the same; without it, the text has another id."""
    writer = StepWriter("m7")
    (started, *_) = writer.feed(
        [BlockStart(0, before), BlockStop(0), BlockStart(1, "text"), Delta(1, "Hello")]
    )
    kept = writer.kept()
    stored = StoredMessage(1, "m7", "t", "assistant", json.dumps(kept.content))
    assert json.loads(started)["messageId"] != to_agui([stored])[0]["id"]
    assert kept.dropped
