"""The event stream: order, shape, every stop reason, and that it says the same as the whole message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from anthropic_emulator.settings import Settings

from .client import HEADERS, TOOLS, Emulator, ask, assemble

SONNET: dict[str, Any] = {"model": "claude-sonnet-5-5"}
QUESTION = "Today is 2026-11-24. How many steps did I take yesterday?"


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {**{k: v for k, v in message.items() if k not in ("id", "stop_details")}, "content": content}


async def test_events_come_in_the_documented_order(emulator: Emulator) -> None:
    events = await emulator.stream(ask(QUESTION, tools=TOOLS, **SONNET))
    assert [event.data["type"] for event in events] == [event.name for event in events]
    names = [event.name for event in events]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    blocks = [name for name in names[1:-2] if name != "ping"]
    shape = [name for n, name in enumerate(blocks) if n == 0 or name != blocks[n - 1]]
    one = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert shape == one * 3
    kinds = [e.data["content_block"]["type"] for e in events if e.name == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"]


async def test_each_block_has_its_own_deltas_and_thinking_ends_with_its_signature(emulator: Emulator) -> None:
    events = await emulator.stream(ask(QUESTION, tools=TOOLS, **SONNET))
    kinds: dict[int, list[str]] = {}
    for event in events:
        if event.name == "content_block_delta":
            kinds.setdefault(event.data["index"], []).append(event.data["delta"]["type"])
    assert set(kinds[0][:-1]) == {"thinking_delta"}
    assert kinds[0][-1] == "signature_delta"
    assert set(kinds[1]) == {"text_delta"}
    assert set(kinds[2]) == {"input_json_delta"}
    empty = next(e for e in events if e.data.get("index") == 2 and e.name == "content_block_delta")
    assert empty.data["delta"]["partial_json"] == ""


async def test_message_start_has_the_input_usage_and_message_delta_the_rest(emulator: Emulator) -> None:
    events = await emulator.stream(ask(QUESTION))
    started = events[0].data["message"]
    assert started["content"] == []
    assert started["stop_reason"] is None
    assert started["usage"]["input_tokens"] > 0
    ended = events[-2].data
    assert ended["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert ended["usage"]["input_tokens"] == started["usage"]["input_tokens"]
    assert ended["usage"]["output_tokens"] > started["usage"]["output_tokens"]


@pytest.mark.parametrize("text", [QUESTION, "Hallo!", "[[emulator: tokens=7 thinking=3]]"])
async def test_streamed_and_whole_messages_say_the_same(emulator: Emulator, text: str) -> None:
    body = ask(text, tools=TOOLS, **SONNET)
    streamed = assemble(await emulator.stream(body))
    whole = (await emulator.post(body)).json
    assert without_ids(streamed) == without_ids(whole)


async def test_the_same_request_gets_the_same_answer_with_new_ids(emulator: Emulator) -> None:
    first, second = [(await emulator.post(ask(QUESTION, tools=TOOLS, **SONNET))).json for _ in range(2)]
    assert without_ids(first) == without_ids(second)
    assert first["id"] != second["id"]
    assert first["content"][-1]["id"] != second["content"][-1]["id"]


class TestSeeded:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(ttft_ms=0, delay_ms=0, seed=7)

    async def test_a_seed_fixes_the_ids_too(self, emulator: Emulator) -> None:
        first = await emulator.say("Hello")
        await emulator.control("POST", "reset")
        assert (await emulator.say("Hello"))["id"] == first["id"]


@pytest.mark.parametrize("stop", ["end_turn", "max_tokens", "refusal", "stop_sequence", "tool_use"])
async def test_every_stop_reason_can_be_asked_for(emulator: Emulator, stop: str) -> None:
    events = await emulator.stream(ask(f"[[emulator: text=ok stop={stop}]]"))
    delta = events[-2].data["delta"]
    assert delta["stop_reason"] == stop
    assert ("stop_details" in delta) == (stop == "refusal")


async def test_max_tokens_cuts_the_reply_at_that_many_deltas(emulator: Emulator) -> None:
    message = await emulator.say("[[emulator: tokens=50]]", max_tokens=5)
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"]["output_tokens"] == 5
    assert len(message["content"][0]["text"].split()) == 5


async def test_max_tokens_zero_answers_nothing(emulator: Emulator) -> None:
    message = await emulator.say("Hello", max_tokens=0)
    assert message["content"] == []
    assert message["usage"]["output_tokens"] == 0


async def test_a_tool_call_cut_by_max_tokens_has_incomplete_json(emulator: Emulator) -> None:
    events = await emulator.stream(
        ask('[[emulator: tool=t args={"a":"bbbbbbbbbbbbbbbbbbbb"}]]', max_tokens=1)
    )
    text = "".join(e.data["delta"]["partial_json"] for e in events if e.name == "content_block_delta")
    assert text == '{"a":"bbbbbb'
    assert events[-2].data["delta"]["stop_reason"] == "max_tokens"


async def test_a_stop_sequence_ends_the_text_before_itself(emulator: Emulator) -> None:
    message = await emulator.say('[[emulator: text="one two three four"]]', stop_sequences=["four", "three"])
    assert message["content"] == [{"type": "text", "text": "one two "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "three")


async def test_a_paused_turn_is_continued_by_sending_it_back(emulator: Emulator) -> None:
    body = ask("[[emulator: text=searching stop=pause_turn]]")
    paused = (await emulator.post(body)).json
    assert paused["stop_reason"] == "pause_turn"
    call = paused["content"][-1]
    assert call["type"] == "server_tool_use"
    body["messages"].append({"role": "assistant", "content": paused["content"]})
    body["messages"][0]["content"] = "Search for it."
    resumed = (await emulator.post(body)).json
    assert resumed["content"][0] == {
        "type": "web_search_tool_result",
        "tool_use_id": call["id"],
        "content": [],
    }
    assert resumed["stop_reason"] == "end_turn"


async def test_thinking_is_omitted_by_default_but_signed(emulator: Emulator) -> None:
    body = ask("Hello", thinking={"type": "adaptive"}, **SONNET)
    message = assemble(await emulator.stream(body))
    assert message["content"][0]["thinking"] == ""
    assert message["content"][0]["signature"]
    body["messages"] += [
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": "Thanks"},
    ]
    assert (await emulator.post(body)).status == 200


async def test_between_tools_thinks_only_after_a_tool_result(emulator: Emulator) -> None:
    body = ask(QUESTION, tools=TOOLS, thinking={"type": "between_tools"}, **SONNET)
    first = (await emulator.post(body)).json
    assert [block["type"] for block in first["content"]] == ["text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": first["content"][1]["id"], "content": "8432"}
    body["messages"] += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    second = (await emulator.post(body)).json
    assert [block["type"] for block in second["content"]] == ["thinking", "text"]


async def test_a_delta_is_sent_when_it_is_due(emulator: Emulator) -> None:
    body = ask("[[emulator: tokens=4 ttft_ms=60 delay_ms=30]]", stream=True)
    loop = asyncio.get_running_loop()
    arrived: list[tuple[bytes, float]] = []
    async with emulator.session.post(emulator.url + "/v1/messages", json=body, headers=HEADERS) as response:
        async for line in response.content:
            arrived.append((line, loop.time()))  # noqa: PERF401 - the time of arrival is what is tested
    started = next(when for line, when in arrived if b"message_start" in line)
    deltas = [when for line, when in arrived if b"text_delta" in line]
    assert len(deltas) == 4
    assert deltas[0] - started >= 0.05
    assert deltas[3] - deltas[0] >= 0.08


async def test_models_are_listed(emulator: Emulator) -> None:
    async with emulator.session.get(emulator.url + "/v1/models", headers=HEADERS) as response:
        listed = await response.json()
    assert {model["id"] for model in listed["data"]} == {
        "claude-sonnet-5-5",
        "claude-opus-5-5",
        "claude-haiku-5-5",
    }
    async with emulator.session.get(emulator.url + "/v1/models/claude-0", headers=HEADERS) as response:
        assert response.status == 404
