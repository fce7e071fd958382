from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any, Literal

import pytest
from ag_ui.core.events import Event as PublishedEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent_backend import events as agui
from agent_backend.events import Cursor, closings, delta_prefix, encode, ends_run, positioned, starts_run

THREAD = "0192d3a4-0000-7000-8000-000000000001"
RUN = "0192d3a4-0000-7000-8000-000000000002"
_published: TypeAdapter[Any] = TypeAdapter(PublishedEvent)

SAMPLES: list[agui.Event] = [
    agui.RunStarted(
        thread_id=THREAD,
        run_id=RUN,
        timestamp=1,
        input=agui.RunInput(
            thread_id=THREAD, run_id=RUN, messages=[agui.InputMessage(id="u", content="Grüße")]
        ),
    ),
    agui.RunStarted(thread_id=THREAD, run_id=RUN),
    agui.RunFinished(thread_id=THREAD, run_id=RUN, outcome=agui.SuccessOutcome()),
    agui.RunFinished(
        thread_id=THREAD,
        run_id=RUN,
        outcome=agui.CancelledOutcome(),
        timestamp=1,
        result={"stopReason": "end_turn"},
        usage=[
            agui.TokenUsage(provider="p", model="m", input_tokens=1, output_tokens=2, cached_input_tokens=1)
        ],
    ),
    agui.RunError(message="m", code="c", timestamp=1),
    agui.TextMessageStart(message_id="m"),
    agui.TextMessageContent(message_id="m", delta="d"),
    agui.TextMessageEnd(message_id="m"),
    agui.ReasoningStart(message_id="m"),
    agui.ReasoningMessageStart(message_id="m"),
    agui.ReasoningMessageContent(message_id="m", delta="d"),
    agui.ReasoningMessageEnd(message_id="m"),
    agui.ReasoningEnd(message_id="m"),
    agui.ToolCallStart(tool_call_id="t", tool_call_name="n", parent_message_id="m"),
    agui.ToolCallArgs(tool_call_id="t", delta="{}"),
    agui.ToolCallEnd(tool_call_id="t"),
    agui.ToolCallResult(message_id="m", tool_call_id="t", content="c"),
    agui.Custom(name="notice", value="safety.cardiac"),
    agui.Custom(
        name="tool_call_pending",
        value=agui.PendingToolCall(
            tool_call_id="t",
            tool_name="n",
            kind="device",
            effects=False,
            expires_at=dt.datetime(2026, 11, 20, 12, 2, tzinfo=dt.UTC),
        ),
    ),
    agui.RunFinished(thread_id=THREAD, run_id=RUN, outcome=agui.SuccessOutcome(pending_tool_call_ids=["t"])),
    agui.RunFinished(
        thread_id=THREAD,
        run_id=RUN,
        outcome=agui.InterruptOutcome(
            interrupts=[
                agui.Interrupt(
                    id="t", reason="approval", tool_call_id="t", response_schema={"type": "object"}
                )
            ]
        ),
    ),
    agui.MessagesSnapshot(messages=[{"id": "u", "role": "user", "content": "hi"}]),
]


def _name(event: agui.Event) -> str:
    return type(event).__name__


def test_there_is_a_sample_of_every_event() -> None:
    assert {type(sample) for sample in SAMPLES} == set(agui.Event.__args__)


@pytest.mark.parametrize("event", SAMPLES, ids=_name)
def test_an_event_is_what_the_published_models_say(event: agui.Event) -> None:
    raw = positioned(encode(event), THREAD, "1-2")
    read = _published.validate_json(raw)
    again = json.loads(read.model_dump_json(by_alias=True, exclude_none=True))
    assert again == json.loads(raw)
    assert again["metadata"] == {"threadId": THREAD, "cursor": "1-2"}


def test_what_has_a_role_says_it() -> None:
    # The published JSON schema requires it of REASONING_MESSAGE_START though it has one value only.
    roles = {_name(sample): json.loads(encode(sample)).get("role") for sample in SAMPLES}
    assert roles["ReasoningMessageStart"] == "reasoning"
    assert roles["TextMessageStart"] == "assistant"
    assert roles["ToolCallResult"] == "tool"


@pytest.mark.parametrize("kind", ["text", "thinking", "tool_use"])
@given(text=st.text(min_size=1), entity=st.text(max_size=20))
def test_the_hot_path_writes_what_the_struct_would(
    kind: Literal["text", "thinking", "tool_use"], text: str, entity: str
) -> None:
    event = {
        "text": agui.TextMessageContent(message_id=entity, delta=text),
        "thinking": agui.ReasoningMessageContent(message_id=entity, delta=text),
        "tool_use": agui.ToolCallArgs(tool_call_id=entity, delta=text),
    }[kind]
    assert delta_prefix(kind, entity) + encode(text) + b"}" == encode(event)


@given(st.text())
def test_an_event_is_one_line(text: str) -> None:
    # Segments join events by newlines, and SSE ends a field with one.
    assert not re.search(rb"[\r\n]", positioned(encode(agui.RunError(message=text, code=text)), THREAD, None))


# --- cursors ---------------------------------------------------------------------------------------

cursors = st.builds(Cursor, st.integers(0, 10**18 - 1), st.integers(0, 10**9 - 1))


@given(cursors)
def test_a_cursor_reads_back(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@given(cursors, cursors)
def test_cursors_compare_in_log_order(a: Cursor, b: Cursor) -> None:
    assert (a < b) == ((a.epoch, a.n) < (b.epoch, b.n))


@given(st.text(alphabet="0123456789-x٣ \n", max_size=30))
def test_anything_else_is_no_cursor(text: str) -> None:
    canonical = re.fullmatch(r"[0-9]{1,18}-[0-9]{1,9}", text)
    if canonical:
        assert Cursor.parse(text) == Cursor(*map(int, text.split("-")))
    else:
        with pytest.raises(ValueError, match="cursor"):
            Cursor.parse(text)


# --- runs and what they leave open -----------------------------------------------------------------


def test_a_run_s_own_start_is_told_from_one_that_quotes_its_id() -> None:
    def started(run: str, content: str) -> bytes:
        message = agui.InputMessage(id="u", content=content)
        run_input = agui.RunInput(thread_id=THREAD, run_id=run, messages=[message])
        return encode(agui.RunStarted(thread_id=THREAD, run_id=run, timestamp=1, input=run_input))

    assert starts_run(started(RUN, "hi"), RUN)
    assert not starts_run(started("other", f'"runId":"{RUN}"'), RUN)
    assert not starts_run(started("other", RUN), RUN)
    # The session's own id is in every RUN_STARTED.
    assert not starts_run(started(RUN, "hi"), THREAD)


def test_what_ends_a_run() -> None:
    ending = {_name(sample) for sample in SAMPLES if ends_run(encode(sample))}
    assert ending == {"RunFinished", "RunError"}
    assert not ends_run(encode(agui.TextMessageContent(message_id="m", delta='{"type":"RUN_FINISHED"}')))


_ENDS = {
    "TEXT_MESSAGE_START": "TEXT_MESSAGE_END",
    "REASONING_START": "REASONING_END",
    "REASONING_MESSAGE_START": "REASONING_MESSAGE_END",
    "TOOL_CALL_START": "TOOL_CALL_END",
}


@st.composite
def cut_steps(draw: st.DrawFn) -> list[bytes]:
    """Draw a model step's events, cut anywhere."""
    events: list[agui.Event] = []
    ends: list[agui.Event] = []
    for index, kind in enumerate(draw(st.lists(st.sampled_from(["text", "thinking", "tool"]), max_size=4))):
        entity = f"m.{index}"
        if kind == "text":
            events += [agui.TextMessageStart(message_id=entity)]
            events += [agui.TextMessageContent(message_id=entity, delta="TOOL_CALL_END")]
            ends += [agui.TextMessageEnd(message_id=entity)]
        elif kind == "thinking":
            events += [agui.ReasoningStart(message_id=entity), agui.ReasoningMessageStart(message_id=entity)]
            ends += [agui.ReasoningMessageEnd(message_id=entity), agui.ReasoningEnd(message_id=entity)]
        else:
            events += [agui.ToolCallStart(tool_call_id=entity, tool_call_name="n")]
            events += [agui.ToolCallArgs(tool_call_id=entity, delta="{")]
            ends += [agui.ToolCallEnd(tool_call_id=entity)]
    whole = [encode(event) for event in (*events, *ends)]
    return whole[: draw(st.integers(0, len(whole)))]


@given(cut_steps())
def test_closings_close_what_is_open_innermost_first_and_nothing_else(step: list[bytes]) -> None:
    still_open: list[tuple[str, str]] = []
    for kind, entity in map(_place, step):
        if kind in _ENDS:
            still_open.append((_ENDS[kind], entity))
        elif (kind, entity) in still_open:
            still_open.remove((kind, entity))
    assert [_place(raw) for raw in closings(step)] == still_open[::-1]
    assert closings([*step, *closings(step)]) == []


def _place(raw: bytes) -> tuple[str, str]:
    event = json.loads(raw)
    return event["type"], event.get("toolCallId") or event["messageId"]


def test_a_pending_call_is_read_from_its_event_alone() -> None:
    pending = next(
        sample for sample in SAMPLES if isinstance(sample, agui.Custom) and sample.name == "tool_call_pending"
    )
    assert agui.pending_call(encode(pending)) == pending.value
    for sample in SAMPLES:
        if sample is not pending:
            assert agui.pending_call(encode(sample)) is None


def test_a_run_may_end_under_another_id() -> None:
    ended = agui.RunFinished(thread_id=THREAD, run_id=RUN, outcome=agui.SuccessOutcome(), timestamp=1)
    other = "0192d3a4-0000-7000-8000-000000000003"
    assert json.loads(agui.of_run(encode(ended), other)) == {**json.loads(encode(ended)), "runId": other}
    assert ends_run(agui.of_run(encode(ended), other))
