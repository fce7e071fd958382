from __future__ import annotations

import json
from typing import Any

from ag_ui.core.types import Message as PublishedMessage
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent_backend.engines.base import BlockStart, Delta, StepEvent
from agent_backend.transcript import StoredMessage, to_agui
from agent_backend.turns.step import StepWriter

_published: TypeAdapter[Any] = TypeAdapter(list[PublishedMessage])


def stored(role: str, *blocks: dict[str, Any], message_id: str = "m1") -> StoredMessage:
    return StoredMessage(1, message_id, "turn", role, json.dumps(blocks))


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thought(value: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, "signature": "s"}


def call(call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "look", "input": arguments}


def test_the_user_s_blocks_are_one_message() -> None:
    assert to_agui([stored("user", text("one"), text("two"))]) == [
        {"id": "m1", "role": "user", "content": "one\n\ntwo"}
    ]


def test_what_the_server_told_the_model_is_not_shown() -> None:
    assert to_agui([stored("system", text("Today is Monday."))]) == []


def test_an_answer_keeps_its_order_and_calls_hang_on_what_was_said_before() -> None:
    function = {"name": "look", "arguments": '{"at":"ü"}'}
    assert to_agui(
        [stored("assistant", thought("hm"), text("Let me see."), call("c1", at="ü"), call("c2"))]
    ) == [
        {"id": "m1", "role": "reasoning", "content": "hm"},
        {
            "id": "m1.1",
            "role": "assistant",
            "content": "Let me see.",
            "toolCalls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
    ]


def test_a_call_without_a_word_makes_a_message_of_its_own() -> None:
    [message] = to_agui([stored("assistant", call("c1"))])
    assert message["id"] == "m1"
    assert "content" not in message


def test_results_say_which_call_they_answer_and_whether_it_failed() -> None:
    fine = {"type": "tool_result", "tool_use_id": "c1", "content": "7"}
    parts = {"type": "tool_result", "tool_use_id": "c2", "content": [text("a"), text("b")], "is_error": True}
    assert to_agui([stored("tool", fine, parts)]) == [
        {"id": "m1", "role": "tool", "toolCallId": "c1", "content": "7"},
        {"id": "m1.1", "role": "tool", "toolCallId": "c2", "content": "a\n\nb", "error": "a\n\nb"},
    ]


def test_what_only_the_provider_understands_is_left_out_and_keeps_its_place() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    assert to_agui([stored("assistant", redacted, text("hi"))]) == [
        {"id": "m1.1", "role": "assistant", "content": "hi"}
    ]


answers = st.lists(
    st.one_of(
        st.builds(text, st.text(min_size=1, max_size=9).filter(str.strip)),
        st.builds(thought, st.text(min_size=1, max_size=9)),
        st.just("call"),
    ),
    min_size=1,
    max_size=6,
)


@given(answers)
def test_the_stream_and_the_snapshot_name_the_same_things_alike(drawn: list[Any]) -> None:
    """Whatever blocks an answer has: who followed it holds what a snapshot shows."""
    blocks = [call(f"c{i}", n=i) if each == "call" else each for i, each in enumerate(drawn)]
    writer = StepWriter("m1")
    held: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        for raw in writer.feed(_streamed(index, block)):
            _apply(json.loads(raw), held)
    snapshot = to_agui([stored("assistant", *blocks)])
    assert held == snapshot
    _published.validate_python(snapshot)


def _streamed(index: int, block: dict[str, Any]) -> list[StepEvent]:
    match block["type"]:
        case "text":
            return [BlockStart(index=index, kind="text"), Delta(index=index, text=block["text"])]
        case "thinking":
            return [BlockStart(index=index, kind="thinking"), Delta(index=index, text=block["thinking"])]
        case _:
            start = BlockStart(index=index, kind="tool_use", id=block["id"], name=block["name"])
            written = json.dumps(block["input"], separators=(",", ":"))
            return [start, *(Delta(index=index, text=piece) for piece in written)]


def _apply(event: dict[str, Any], held: list[dict[str, Any]]) -> None:
    match event["type"]:
        case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
            held.append({"id": event["messageId"], "role": event["role"], "content": ""})
        case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
            next(m for m in held if m["id"] == event["messageId"])["content"] += event["delta"]
        case "TOOL_CALL_START":
            parent = event["parentMessageId"]
            if all(message["id"] != parent for message in held):
                held.append({"id": parent, "role": "assistant"})
            function = {"name": event["toolCallName"], "arguments": ""}
            made = {"id": event["toolCallId"], "type": "function", "function": function}
            next(m for m in held if m["id"] == parent).setdefault("toolCalls", []).append(made)
        case "TOOL_CALL_ARGS":
            calls = [c for m in held for c in m.get("toolCalls", [])]
            next(c for c in calls if c["id"] == event["toolCallId"])["function"]["arguments"] += event[
                "delta"
            ]
        case _:
            pass
