"""Directives in the user's text and scripts in the header."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anthropic_emulator import directives
from anthropic_emulator.directives import Script, parse_script
from anthropic_emulator.errors import ApiError

from .client import TOOLS, Emulator, ask, assemble


def script(text: str) -> Script:
    found = directives.in_text(text)
    assert found is not None
    return found


def test_pairs_may_be_bare_quoted_or_json() -> None:
    found = script(
        'Hi [[emulator: tokens=100 delay_ms=2.5 text="a ]] \\"b\\"" tool=t args={"x": [1, {}]}]] there'
    )
    assert (found.tokens, found.delay_ms, found.text) == (100, 2.5, 'a ]] "b"')
    assert (found.tool, found.args) == ("t", {"x": [1, {}]})


def test_text_without_a_directive_has_none() -> None:
    assert directives.in_text("[[other: a=b]]") is None


def test_of_several_directives_the_last_counts() -> None:
    assert script("[[emulator: tokens=1]] never answered\n[[emulator: tokens=2]]").tokens == 2


@pytest.mark.parametrize(
    "text",
    [
        "[[emulator: tokens]]",
        "[[emulator: tokens=many]]",
        "[[emulator: colour=red]]",
        "[[emulator: stop=now]]",
        "[[emulator: tokens=5",
        '[[emulator: args={"a" ]]',
        "[[emulator: tokens=1000001]]",
    ],
)
def test_a_malformed_directive_is_an_error(text: str) -> None:
    with pytest.raises(ApiError):
        directives.in_text(text)


@given(st.text(max_size=40))
def test_any_text_survives_quoting(value: str) -> None:
    assert script(f"[[emulator: text={json.dumps(value)}]]").text == value


@given(st.text(alphabet='[]emulator: ="{}x1', max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(ApiError):
        directives.in_text(text)
    assert "[[emulator:" not in directives.strip(text)


async def test_tokens_sets_the_number_of_deltas_and_output_tokens(emulator: Emulator) -> None:
    events = await emulator.stream(ask("[[emulator: tokens=123]]"))
    assert sum(event.name == "content_block_delta" for event in events) == 123
    assert events[-2].data["usage"]["output_tokens"] == 123


async def test_thinking_sets_the_number_of_thinking_deltas(emulator: Emulator) -> None:
    body = ask("[[emulator: tokens=2 thinking=5]]", model="claude-sonnet-5-5")
    events = await emulator.stream(body)
    kinds = [event.data["delta"]["type"] for event in events if event.name == "content_block_delta"]
    assert kinds == ["thinking_delta"] * 5 + ["signature_delta"] + ["text_delta"] * 2
    none = await emulator.say("[[emulator: tokens=2 thinking=0]]", model="claude-sonnet-5-5")
    assert [block["type"] for block in none["content"]] == ["text"]


async def test_a_tool_is_called_for_so_many_rounds_and_then_the_text_comes(emulator: Emulator) -> None:
    body: dict[str, Any] = ask(
        '[[emulator: tool=get_sleep args={"start":"x"} rounds=2 text="All done"]]', tools=TOOLS
    )
    stops: list[str] = []
    message: dict[str, Any] = {}
    for _ in range(3):
        message = (await emulator.post(body)).json
        stops.append(message["stop_reason"])
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "{}"}
            for block in message["content"]
            if block["type"] == "tool_use"
        ]
        body["messages"] += [
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": results},
        ]
    assert stops == ["tool_use", "tool_use", "end_turn"]
    assert message["content"] == [{"type": "text", "text": "All done"}]


async def test_a_new_question_ends_an_older_directive(emulator: Emulator) -> None:
    body = ask("[[emulator: text=first]]")
    first = (await emulator.post(body)).json
    body["messages"] += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": "Hello"},
    ]
    assert (await emulator.post(body)).json["content"][0]["text"].startswith("[simulation]")


async def test_the_header_does_the_same_and_the_text_wins(emulator: Emulator) -> None:
    header = json.dumps({"text": "from the header", "stop": "refusal"})
    answer = await emulator.post(ask("Hello"), x_emulator_script=header)
    assert answer.json["content"][0]["text"] == "from the header"
    answer = await emulator.post(ask('[[emulator: text="mine"]]'), x_emulator_script=header)
    assert answer.json["content"][0]["text"] == "mine"
    assert answer.json["stop_reason"] == "refusal"
    assert (await emulator.post(ask("Hello"), x_emulator_script="{")).status == 400


async def test_a_malformed_directive_is_a_bad_request(emulator: Emulator) -> None:
    answer = await emulator.post(ask("[[emulator: tokens=many]]"))
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("emulator directive: ")


def test_a_script_from_json_takes_text_numbers() -> None:
    assert parse_script({"tokens": "5", "delay_ms": 3}).tokens == 5


async def test_stamped_deltas_say_when_they_were_written(emulator: Emulator) -> None:
    began = time.monotonic_ns()
    directive = "[[emulator: tokens=3 stamp=true ttft_ms=0 delay_ms=5]]"
    message = assemble(await emulator.stream(ask(directive)))
    stamps = [int(word.removeprefix("@")) for word in message["content"][0]["text"].split()]
    assert len(stamps) == 3
    # What comes due while the machine is busy is written together.
    assert began < stamps[0] <= stamps[1] <= stamps[2] < time.monotonic_ns()
