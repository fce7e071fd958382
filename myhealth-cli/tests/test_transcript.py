from __future__ import annotations

import io
from typing import Any

import msgspec
from inline_snapshot import snapshot

from myhealth_cli import describe, events
from myhealth_cli.client import Connection
from myhealth_cli.events import Event
from myhealth_cli.plain import PlainView
from myhealth_cli.transcript import Block, Transcript


def event(kind: str, **fields: Any) -> Event:
    return events.decode(msgspec.json.encode({"type": kind, "metadata": {"cursor": "1-1"}, **fields}))


def started(run: str = "r1", asked: str = "u1") -> Event:
    message = {"id": asked, "role": "user", "content": "?"}
    return event("RUN_STARTED", threadId="t", runId=run, input={"threadId": "t", "messages": [message]})


def text(message: str, *deltas: str, end: bool = True) -> list[Event]:
    parts = [event("TEXT_MESSAGE_CONTENT", messageId=message, delta=delta) for delta in deltas]
    begin = event("TEXT_MESSAGE_START", messageId=message, role="assistant")
    return [begin, *parts, *([event("TEXT_MESSAGE_END", messageId=message)] if end else [])]


def call(result: str | None = '{"total": 3}') -> list[Event]:
    parts = [
        event("TOOL_CALL_START", toolCallId="c1", toolCallName="get_sleep"),
        event("TOOL_CALL_ARGS", toolCallId="c1", delta='{"start":'),
        event("TOOL_CALL_ARGS", toolCallId="c1", delta='"2026-01-01"}'),
        event("TOOL_CALL_END", toolCallId="c1"),
    ]
    if result is not None:
        parts.append(event("TOOL_CALL_RESULT", messageId="m2", toolCallId="c1", content=result))
    return parts


def finished(outcome: str = "success") -> Event:
    return event("RUN_FINISHED", threadId="t", runId="r1", outcome={"type": outcome})


def settled_messages(*more: dict[str, Any]) -> Event:
    earlier = [
        {"id": "u0", "role": "user", "content": "before"},
        {"id": "a0", "role": "assistant", "content": "earlier answer"},
    ]
    return event(
        "MESSAGES_SNAPSHOT", messages=[*earlier, {"id": "u1", "role": "user", "content": "?"}, *more]
    )


def applied(*parts: Event) -> Transcript:
    transcript = Transcript()
    for part in parts:
        transcript.apply(part)
    return transcript


def test_a_turn_with_a_tool_call() -> None:
    transcript = applied(started(), *text("m1", "Let me ", "look."), *call(), *text("m3", "3."), finished())
    assert transcript.ending == "success"
    assert transcript.blocks == [
        Block("text", "m1", "Let me look.", closed=True, settled=True),
        Block("call", "c1", '{"start":"2026-01-01"}', "get_sleep", '{"total": 3}', closed=True, settled=True),
        Block("text", "m3", "3.", closed=True, settled=True),
    ]


def test_an_end_settles_only_when_something_follows() -> None:
    ended = applied(started(), *text("m1", "half"))
    assert [block.settled for block in ended.blocks] == [False]
    ended.apply(call()[0])
    assert [block.settled for block in ended.blocks] == [True, False]


def test_a_takeover_replaces_what_was_not_settled() -> None:
    call_message = {
        "id": "m1",
        "role": "assistant",
        "content": "Let me look.",
        "toolCalls": [{"id": "c1", "type": "function", "function": {"name": "get_sleep", "arguments": "{}"}}],
    }
    result = {"id": "m2", "role": "tool", "toolCallId": "c1", "content": "{}"}
    transcript = applied(
        started(),
        *text("m1", "Let me look."),
        *call(),
        *text("m3", "lost wor"),
        settled_messages(call_message, result),
        *text("m9", "new words"),
        finished(),
    )
    assert [(block.id, block.text, block.result) for block in transcript.blocks] == [
        ("m1", "Let me look.", None),
        ("c1", "{}", "{}"),
        ("m9", "new words", None),
    ]


def test_being_brought_up_to_date_twice_is_the_same_as_once() -> None:
    catching_up = [
        started(),
        settled_messages({"id": "m1", "role": "assistant", "content": "all"}),
        finished(),
    ]
    assert applied(*catching_up).blocks == applied(*catching_up, *catching_up).blocks
    assert [block.text for block in applied(*catching_up).blocks] == ["all"]


def test_endings() -> None:
    assert applied(started(), finished("cancelled")).ending == "cancelled"
    failed = applied(started(), event("RUN_ERROR", message="The model is overloaded.", code="overloaded"))
    assert (failed.ending, failed.problem) == ("failed", "The model is overloaded.")
    assert applied(started(), finished(), started("r2", "u2")).ending is None


def test_unknown_events_pass() -> None:
    assert (
        applied(started(), event("STEP_STARTED", stepName="x"), *text("m1", "a"), finished()).ending
        == "success"
    )


def shown(*parts: Event | Connection) -> str:
    out = io.StringIO()
    transcript, view = Transcript(), PlainView(out)

    async def run() -> None:
        async with view.running(transcript):
            for part in parts:
                if isinstance(part, Connection):
                    view.connection(part)
                else:
                    transcript.apply(part)
                    view.update()

    coroutine = run()
    try:
        coroutine.send(None)
    except StopIteration:
        return out.getvalue()
    raise AssertionError("nothing in it waits")


def test_the_plain_view_tells_what_was_replaced() -> None:
    told = shown(
        started(),
        *text("m1", "Let me look."),
        *call(),
        *text("m3", "on aver", end=False),
        Connection("lost", "reset"),
        Connection("back"),
        event("TEXT_MESSAGE_END", messageId="m3"),
        settled_messages({"id": "m1", "role": "assistant", "content": "Let me look."}),
        *text("m4", "3 hours."),
        finished(),
    )
    assert told == snapshot("""\
Let me look.
  > get_sleep {"start":"2026-01-01"}
    = {"total":3}
on aver
(reconnecting...)
(connected again)
(the answer was interrupted and is given again)
3 hours.
""")


def test_calls_and_results_in_a_line() -> None:
    assert describe.arguments('{"metric":"steps","weeks":8}') == "metric=steps, weeks=8"
    assert describe.arguments('{"metric":"st') == '{"metric":"st'
    result = '{"days":7,"unit":null,"summary":{"mean_per_day":6598},"sources":["Watch"],"daily":[{},{}]}'
    assert describe.result(result) == "mean per day 6598 · days 7 · sources Watch · 2 daily"
    assert describe.result(result, '{"days":7}') == "mean per day 6598 · sources Watch · 2 daily"
    assert describe.result("Something\n failed") == "Something failed"
    assert len(describe.result('{"note":"' + "x" * 500 + '"}', width=30)) <= 30
