"""From the API's stream events to step events and to content that can go back as history."""

from __future__ import annotations

from typing import Any

import pytest

from agent_backend.engines.answer import Answer
from agent_backend.engines.base import BlockStart, BlockStop, Delta, StepEvent, Usage
from agent_backend.engines.limits import TransientError
from agent_backend.engines.sse import SseParser
from agent_backend.errors import EngineError

from .provider import answer, block, event, message_end, message_start, text_block, thinking_block, tool_block


def feed(stream: bytes) -> tuple[Answer, list[StepEvent]]:
    taken = Answer()
    return taken, taken.take(SseParser().feed(stream))


def content(stream: bytes) -> list[dict[str, Any]]:
    taken, _ = feed(stream)
    assert taken.failure is None
    assert taken.finished
    return taken.content()


def failure(stream: bytes) -> EngineError:
    taken, _ = feed(stream)
    assert taken.failure is not None
    assert not taken.finished
    return taken.failure


def test_events_of_a_block() -> None:
    _, events = feed(answer(text_block(0, "a", "b")))
    assert events == [BlockStart(0, "text"), Delta(0, "a"), Delta(0, "b"), BlockStop(0)]


def test_what_a_block_holds_at_its_start_is_a_delta() -> None:
    stream = answer(
        block(0, {"type": "text", "text": "Hel"}, {"type": "text_delta", "text": "lo"}),
        block(1, {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}}),
    )
    taken, events = feed(stream)
    assert Delta(0, "Hel") in events
    assert Delta(1, '{"a":1}') in events
    assert [b.get("text", b.get("input")) for b in taken.content()] == ["Hello", {"a": 1}]


def test_thinking_is_verbatim_even_when_its_text_is_omitted() -> None:
    omitted = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "signature_delta", "signature": "abc"},
    )
    redacted = block(1, {"type": "redacted_thinking", "data": "opaque"})
    assert content(answer(omitted, redacted, text_block(2, "Hi"))) == [
        {"type": "thinking", "thinking": "", "signature": "abc"},
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "text", "text": "Hi"},
    ]


def test_blank_text_is_left_out() -> None:
    assert content(answer(text_block(0, "\n\n"), text_block(1), tool_block(2, "{}"))) == [
        {"type": "tool_use", "id": "toolu_1", "name": "get_sleep", "input": {}}
    ]


def test_a_call_without_arguments_has_empty_input() -> None:
    assert content(answer(tool_block(0, ""), stop_reason="tool_use"))[0]["input"] == {}


def test_cut_thinking_is_left_out() -> None:
    stream = answer(thinking_block(0, "I wonder", signature=""), stop_reason="max_tokens")
    assert content(stream) == []


@pytest.mark.parametrize("pieces", [("",), (), ('{"days": ',)])
def test_a_call_cut_by_max_tokens_is_left_out(pieces: tuple[str, ...]) -> None:
    whole = tool_block(0, '{"days": 3}', id="toolu_0")
    stream = answer(whole, tool_block(1, *pieces), stop_reason="max_tokens")
    assert [call["id"] for call in content(stream)] == ["toolu_0"]


@pytest.mark.parametrize("text", ['{"days": ', "[1]", '{"a":1}}', "nonsense"])
def test_input_that_is_no_json_object_fails_the_step(text: str) -> None:
    error = failure(answer(tool_block(0, text), stop_reason="tool_use"))
    assert (error.code, error.retryable, error.started) == ("model_output_invalid", True, True)


def test_citations_are_kept() -> None:
    citation = {"type": "char_location", "cited_text": "x"}
    cited = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "A"}, _citations(citation))
    assert content(answer(cited)) == [{"type": "text", "text": "A", "citations": [citation]}]


def _citations(citation: dict[str, Any]) -> dict[str, Any]:
    return {"type": "citations_delta", "citation": citation}


def test_kinds_we_do_not_know_are_kept_and_not_streamed() -> None:
    server = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    stream = answer(block(0, server, {"type": "input_json_delta", "partial_json": '{"q":"x"}'}))
    taken, events = feed(stream)
    assert events == [BlockStart(0, "other"), BlockStop(0)]
    assert taken.content() == [{**server, "input": {"q": "x"}}]


def test_events_of_a_newer_api_are_skipped() -> None:
    novel = event({"type": "content_block_novelty", "index": 0})
    strange = block(0, {"type": "text", "text": ""}, {"type": "novel_delta", "x": 1}, _text("ok"))
    assert content(message_start() + novel + strange + message_end()) == [{"type": "text", "text": "ok"}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": text}


BEGUN = message_start()


@pytest.mark.parametrize(
    "stream",
    [
        BEGUN + b"data: {not json\n\n",
        BEGUN + b"data: [1]\n\n",
        BEGUN + event({"type": "content_block_start", "index": 0}),
        BEGUN + text_block(0, "é").replace("é".encode(), b"\xff"),
        BEGUN + text_block(1, "skipped an index"),
        BEGUN + text_block(0, "a") + text_block(0, "again"),
        BEGUN + event({"type": "content_block_delta", "index": 0, "delta": _text("no block")}),
        BEGUN + event({"type": "content_block_stop", "index": 0}),
        BEGUN + block(0, {"type": "tool_use", "name": "n", "input": {}}),
        BEGUN + event({"type": "message_stop"}),
        BEGUN + message_end("a_new_reason"),
        text_block(0, "before the message"),
    ],
)
def test_what_is_not_the_protocol_is_an_error(stream: bytes) -> None:
    assert failure(stream).code == "provider_protocol"


def test_events_before_a_failure_are_not_lost() -> None:
    _, events = feed(BEGUN + text_block(0, "seen") + event({"type": "error", "error": {"type": "api_error"}}))
    assert Delta(0, "seen") in events


def test_an_error_event_names_its_type_only() -> None:
    gone = event({"type": "error", "error": {"type": "overloaded_error", "message": "You said: secret"}})
    error = failure(BEGUN + gone)
    assert (error.code, error.retryable, error.started) == ("provider_overloaded", True, True)
    assert "secret" not in str(error)
    odd = failure(event({"type": "error", "error": {"type": "You said: secret"}}))
    assert "secret" not in str(odd)


def test_an_error_before_the_message_may_be_retried() -> None:
    error = failure(event({"type": "ping"}) + event({"type": "error", "error": {"type": "overloaded_error"}}))
    assert isinstance(error, TransientError)
    assert not error.started


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("end_turn", "end_turn"),
        ("stop_sequence", "stop_sequence"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "max_tokens"),
    ],
)
def test_stop_reasons(told: str, meant: str) -> None:
    taken, _ = feed(answer(text_block(0, "x"), stop_reason=told))
    assert taken.stop_reason == meant


def test_usage_is_cumulative_and_split_by_lifetime() -> None:
    split = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
    start = message_start(cache_creation_input_tokens=100, cache_read_input_tokens=500, cache_creation=split)
    taken, _ = feed(start + text_block(0, "x") + message_end(input_tokens=12, output_tokens=34))
    assert taken.usage() == Usage(
        input_tokens=12,
        cache_read_input_tokens=500,
        cache_write_5m_input_tokens=30,
        cache_write_1h_input_tokens=70,
        output_tokens=34,
    )


def test_unsplit_cache_writes_count_as_the_dearer_kind() -> None:
    taken, _ = feed(message_start(cache_creation_input_tokens=100) + text_block(0, "x") + message_end())
    assert taken.usage().cache_write_1h_input_tokens == 100
