"""Requests the API refuses, with the status and the message it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anthropic_emulator.settings import Settings

from .client import HEADERS, SHOWN, TOOLS, Emulator, ask

CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_sleep", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}
FIVE_MINUTES = {"type": "ephemeral"}
ONE_HOUR = {"type": "ephemeral", "ttl": "1h"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(turns)}


SONNET: dict[str, Any] = {"model": "claude-sonnet-5-5", "thinking": SHOWN}
OPUS: dict[str, Any] = {"model": "claude-opus-5-5", "thinking": SHOWN}
TOOL = {"name": "t", "input_schema": {"type": "object"}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
    ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": 128_001}, "max_tokens: 128001 > 128000, which is the maximum"),
    ({"colour": 1}, "colour: Extra inputs are not permitted"),
    ({"temperature": 0.5}, "temperature: Extra inputs are not permitted"),
    ({"top_p": 0.5}, "top_p: Extra inputs are not permitted"),
    ({"top_k": 5}, "top_k: Extra inputs are not permitted"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean"),
    ({"messages": []}, "messages: at least one message is required"),
    ({"messages": "hi"}, "messages: Input should be a valid list"),
    (messages(assistant("hi"), user("hi")), 'messages: first message must use the "user" role'),
    (messages({"role": "robot", "content": "hi"}), "messages.0.role: Input should be 'assistant', 'system'"),
    (messages({"content": "hi"}), "messages.0.role: Field required"),
    (messages({"role": "user"}), "messages.0.content: Field required"),
    (messages({**user("hi"), "id": 1}), "messages.0.id: Extra inputs are not permitted"),
    (messages(user("")), "messages.0: all messages must have non-empty content"),
    (messages(user([])), "messages.0: all messages must have non-empty content"),
    (messages(user([text("")])), "messages: text content blocks must be non-empty"),
    (messages(user([text(" \n")])), "messages: text content blocks must contain non-whitespace text"),
    (
        messages(user([text("", cache_control=FIVE_MINUTES)])),
        "messages.0.content.0.text: cache_control cannot be set for empty text blocks",
    ),
    (messages(user([{"type": "video"}])), "messages.0.content.0: Input tag 'video' found using 'type'"),
    (messages(user([CALL])), "messages.0.content.0: Input tag 'tool_use' found using 'type'"),
    (messages(user("hi"), assistant("Well")), "This model does not support assistant message prefill."),
    (messages({"role": "system", "content": "hi"}), "messages.0: role 'system' must follow a 'user' message"),
    (
        messages(user("a"), {"role": "system", "content": "b"}, user("c")),
        "messages.1: role 'system' must be last or precede",
    ),
    (
        messages(user("a"), assistant("b"), {"role": "system", "content": "c"}),
        "messages.2: role 'system' must follow a 'user' message",
    ),
    (
        messages(user("a"), assistant([CALL]), user("b")),
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_1.",
    ),
    (
        messages(user("a"), assistant([CALL]), user([text("late"), RESULT])),
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_1.",
    ),
    (
        messages(user("a"), assistant([CALL, {**CALL, "id": "toolu_2"}]), user([RESULT])),
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_2.",
    ),
    (
        messages(user([RESULT])),
        "messages.0.content.0: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1.",
    ),
    (
        messages(user("a"), assistant([CALL]), user([RESULT, RESULT])),
        "messages.2.content.1: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1.",
    ),
    (
        messages(user("a"), assistant([CALL, CALL]), user([RESULT])),
        "messages.1: `tool_use` ids must be unique",
    ),
    (
        messages(user("a"), assistant([{**CALL, "id": "no spaces"}])),
        "messages.1.content.0.id: String should match pattern",
    ),
    ({"system": [text("")]}, "system: text content blocks must be non-empty"),
    ({"system": [{"type": "image"}]}, "system.0.type: Input should be 'text'"),
    ({"tools": [{"name": "t"}]}, "tools.0.input_schema: Field required"),
    (
        {"tools": [{"name": "t", "input_schema": {"type": "array"}}]},
        "tools.0.input_schema.type: Input should",
    ),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.name: String should match pattern"),
    ({"tools": [TOOL, TOOL]}, "tools: Tool names must be unique."),
    ({"tools": [{**TOOL, "colour": 1}]}, "tools.0.colour: Extra inputs are not permitted"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice may only be specified while providing tools."),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "Tool 'x' not found in provided tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type: Input should be 'any', 'auto'"),
    (
        {**SONNET, "tools": [TOOL], "tool_choice": {"type": "any"}},
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    (
        {
            **SONNET,
            "tools": [TOOL],
            "tool_choice": {"type": "tool", "name": "t"},
            "thinking": {"type": "adaptive"},
        },
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    (
        {**SONNET, "thinking": {"type": "disabled"}},
        'To turn thinking off on this model, send "thinking": {"type": "between_tools"}.',
    ),
    (
        {**OPUS, "thinking": {"type": "disabled"}},
        '"thinking.type.disabled" is not supported for this model. Use "thinking.type.adaptive"',
    ),
    (
        {**SONNET, "thinking": {"type": "enabled", "budget_tokens": 2000}},
        '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive"',
    ),
    (
        {**SONNET, "thinking": {"type": "between_tools"}, "output_config": {"effort": "max"}},
        'output_config.effort: "max" is not supported',
    ),
    (
        {"thinking": {"type": "between_tools"}},
        '"thinking.type.between_tools" is not supported for this model.',
    ),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, '"thinking.type.enabled" is not supported'),
    (
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "xhigh"}},
        'output_config.effort: "xhigh" is not supported',
    ),
    ({"thinking": {"type": "disabled", "display": "omitted"}}, "thinking.display: Extra inputs"),
    ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display: Input should be"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 1}}, "thinking.budget_tokens: Extra inputs"),
    ({"stop_sequences": [" "]}, "stop_sequences.0: each stop sequence must contain non-whitespace"),
    (
        {"system": [text(str(n), cache_control=FIVE_MINUTES) for n in range(5)]},
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        {
            "system": [text(str(n), cache_control=FIVE_MINUTES) for n in range(4)],
            "cache_control": FIVE_MINUTES,
        },
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        {
            "tools": [{**TOOL, "cache_control": FIVE_MINUTES}],
            **messages(user([text("a", cache_control=ONE_HOUR)])),
        },
        "messages.0.content.0.cache_control.ttl: a ttl='1h' cache_control block must not come after",
    ),
    (
        {"system": [text("a", cache_control={"type": "ephemeral", "ttl": "2h"})]},
        "system.0.cache_control.ttl: Input should be '1h' or '5m'",
    ),
    (
        messages(
            user("a"),
            assistant([{"type": "thinking", "thinking": "x", "signature": "AAAA"}, text("b")]),
            user("c"),
        ),
        "messages.1.content.0: Invalid `signature` in `thinking` block",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
async def test_a_bad_request_is_named(emulator: Emulator, change: dict[str, Any], message: str) -> None:
    answer = await emulator.post({**ask("Hello"), **change})
    assert answer.status == 400, answer.body
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.json["error"]["message"].startswith(message)
    assert answer.json["request_id"] == answer.headers["request-id"]


ACCEPTED: list[dict[str, Any]] = [
    messages(user("a"), user("b")),
    messages(user("a"), assistant([CALL]), user([RESULT, text("and now?")])),
    messages(user("a"), assistant([CALL]), user([RESULT]), user("and now?")),
    messages(user("a"), {"role": "system", "content": "Today is 2026-11-24."}),
    messages(user("a"), {"role": "system", "content": "b"}, assistant("c"), user("d")),
    {**SONNET, "thinking": {"type": "between_tools"}, "output_config": {"effort": "high"}},
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}},
    {"metadata": {"user_id": "u"}, "service_tier": "auto", "inference_geo": "global"},
    {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
]


@pytest.mark.parametrize("change", ACCEPTED)
async def test_a_good_request_passes(emulator: Emulator, change: dict[str, Any]) -> None:
    answer = await emulator.post({**ask("Hello"), **change})
    assert answer.status == 200, answer.body


async def test_sampling_is_allowed_by_the_older_version_within_its_range(emulator: Emulator) -> None:
    older = {"anthropic_version": "2023-06-01"}
    assert (await emulator.post(ask("Hi", temperature=0.5, top_k=3), **older)).status == 200
    refused = await emulator.post(ask("Hi", temperature=1.5), **older)
    assert refused.json["error"]["message"] == "temperature: Input should be less than or equal to 1"


async def test_an_unknown_model_is_not_found(emulator: Emulator) -> None:
    answer = await emulator.post(ask("Hello", model="claude-0"))
    assert answer.status == 404
    assert answer.json["error"] == {"type": "not_found_error", "message": "model: claude-0"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b'{"a": "\\ud800"}'])
async def test_what_is_no_json_object_is_refused(emulator: Emulator, body: bytes) -> None:
    answer = await emulator.post(body)
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"


async def test_a_body_over_the_limit_is_refused(emulator: Emulator) -> None:
    answer = await emulator.post(json.dumps(ask("x" * 1_000_001)).encode())
    assert answer.status == 413
    assert answer.json["error"]["type"] == "request_too_large"


async def test_headers_are_required(emulator: Emulator) -> None:
    url = emulator.url + "/v1/messages"

    async def status(headers: dict[str, str]) -> tuple[int, str]:
        async with emulator.session.post(url, json=ask("Hi"), headers=headers) as response:
            body = await response.json()
            return response.status, body.get("error", {}).get("message", "")

    version = {"anthropic-version": "2026-10-21"}
    assert await status(version) == (401, "x-api-key header is required")
    assert (await status({**version, "authorization": "Bearer k"}))[0] == 200
    assert await status({"x-api-key": "k"}) == (400, "anthropic-version: header is required")
    assert (await status({"x-api-key": "k", "anthropic-version": "2020-01-01"}))[0] == 400


async def test_an_unknown_path_is_not_found(emulator: Emulator) -> None:
    answer = await emulator.post({}, path="/v1/nothing")
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")


async def thoughtful(emulator: Emulator, **fields: Any) -> dict[str, Any]:
    """Give a conversation of one answered question, with thinking, and a second question."""
    body = ask("Today is 2026-11-24. Steps?", **{**SONNET, "system": "Be kind.", "tools": TOOLS, **fields})
    first = (await emulator.post(body)).json
    result = {"type": "tool_result", "tool_use_id": first["content"][-1]["id"], "content": "{}"}
    body["messages"] += [assistant(first["content"]), user([result])]
    return body


async def test_thinking_that_comes_back_untouched_passes(emulator: Emulator) -> None:
    body = await thoughtful(emulator)
    assert (await emulator.post(body)).status == 200
    body["system"] = [text("Be kind.", cache_control=ONE_HOUR)]
    assert (await emulator.post(body)).status == 200, "a breakpoint is no edit"
    del body["messages"][1]["content"][0]
    assert (await emulator.post(body)).status == 200, "thinking may be left out"


async def test_thinking_that_was_changed_is_refused(emulator: Emulator) -> None:
    body = await thoughtful(emulator)
    body["messages"][1]["content"][0]["thinking"] += " And more."
    answer = await emulator.post(body)
    assert answer.json["error"]["message"] == "messages.1.content.0: Invalid `signature` in `thinking` block"


@pytest.mark.parametrize("part", ["system", "tools", "earlier turn"])
async def test_thinking_is_bound_to_what_came_before_it(emulator: Emulator, part: str) -> None:
    body = await thoughtful(emulator)
    if part == "system":
        body["system"] = "Be strict."
    elif part == "tools":
        body["tools"] = TOOLS[:3]
    else:
        body["messages"][0]["content"] += " Please."
    answer = await emulator.post(body)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different"
    )


@pytest.mark.parametrize("missing", ["first", "middle"])
async def test_no_thinking_between_others_may_be_left_out(emulator: Emulator, missing: str) -> None:
    body = await thoughtful(emulator)
    for question in ("Well done.", "Thanks!"):
        answer = (await emulator.post(body)).json
        body["messages"] += [assistant(answer["content"]), user(question)]
    assert (await emulator.post(body)).status == 200
    thinking = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    assert len(thinking) == 3
    del thinking[0 if missing == "first" else 1][0]
    assert (await emulator.post(body)).status == (200 if missing == "first" else 400)


async def test_thinking_of_another_model_is_dropped_without_an_error(emulator: Emulator) -> None:
    body = await thoughtful(emulator)
    body["model"] = "claude-opus-5-5"
    assert (await emulator.post(body)).status == 200
    body["messages"][1]["content"][0]["thinking"] += " And more."
    assert (await emulator.post(body)).status == 400


class TestLargeBodies:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(ttft_ms=0, delay_ms=0)

    async def test_a_prompt_longer_than_the_context_is_refused(self, emulator: Emulator) -> None:
        answer = await emulator.post(ask("x" * 4_000_100))
        assert answer.json["error"]["message"].startswith("prompt is too long: 10000")


async def test_count_tokens_counts_the_prompt_of_the_same_message(emulator: Emulator) -> None:
    counted = ask("Hello", system="Be kind.", tools=TOOLS)
    usage = (await emulator.post(counted)).json["usage"]
    del counted["max_tokens"]
    answer = await emulator.post(counted, path="/v1/messages/count_tokens")
    assert answer.json == {"input_tokens": usage["input_tokens"]}
    refused = await emulator.post(ask("Hello"), path="/v1/messages/count_tokens")
    assert refused.json["error"]["message"] == "max_tokens: Extra inputs are not permitted"


def test_the_headers_of_these_tests_are_the_current_ones() -> None:
    assert HEADERS["anthropic-version"] == "2026-10-21"
