"""Turns that meet: on_busy, cancelling, engine and tool failures; and that the next turn always works."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from .client import Client, Received, ended, ends, say, seen, take
from .conftest import AsUser, Pair
from .gate import Gate
from .stack import Site
from .verifier import fold, verify

SLOW = say("Slow", thinking=0, tokens=400, delay_ms=25)
LOOKED_UP = {"thinking": 0, "tool": "get_daily_metrics"}
STEPS_ARGS = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}


def runs(events: list[Received]) -> list[tuple[str, str]]:
    """Return (run id, how it ended) in the order of the ends."""
    out: list[tuple[str, str]] = []
    current = ""
    for event in (each.event for each in events):
        match event["type"]:
            case "RUN_STARTED":
                current = event["runId"]
            case "RUN_FINISHED":
                out.append((event["runId"], event["outcome"]["type"]))
            case "RUN_ERROR":
                out.append((current, event["code"]))
            case _:
                pass
    return out


async def _still_works(client: Client, session: str) -> None:
    """Assert that stream and history agree and that the provider accepts the history."""
    log = await client.log(session)
    verify(log)
    assert fold(log) == await client.messages(session)
    events = await take(client.answer(session, say("And now?", thinking=0, tokens=2)))
    assert [each.type for each in events][-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
    verify(events)


async def test_enqueue_keeps_the_order_of_both_servers(site: Site, pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, gate = await a.new_session(), Gate(site)
    sent = [(await a.begin(session, say(tokens=30, **gate.keys)))["id"]]
    for client in (b, a, b, a):
        turn = await client.begin(session, say(tokens=1))
        assert turn["state"] == "queued"
        sent.append(turn["id"])
    await gate.open()
    log = await take(b.sse(session), ends(len(sent)))
    assert runs(log) == [(turn, "success") for turn in sent]
    verify(log)
    users = [message["id"] for message in await a.messages(session) if message["role"] == "user"]
    assert users == sent


async def test_reject_is_a_409_and_leaves_nothing(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, refused = await a.new_session(), str(uuid4())
    running = await a.begin(session, SLOW)
    for client in (a, b):
        status, body = await client.put_turn(session, "Me too", turn=refused, on_busy="reject")
        assert (status, body["code"]) == (409, "conflict")
    assert (await a.call("GET", f"/v1/sessions/{session}/turns/{refused}"))[0] == 404
    await a.cancel(session, running["id"])
    await take(a.sse(session), ended)
    # Nobody is busy any more, so that the same request is taken.
    assert (await b.put_turn(session, say(tokens=1), turn=refused, on_busy="reject"))[0] == 202
    await take(b.sse(session), ends(2))


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_interrupt_stops_the_running_turn_keeps_its_text_and_acts_once(
    site: Site, pair: Pair, as_user: AsUser, *, elsewhere: bool
) -> None:
    a = as_user(pair.a)
    other = as_user(pair.b) if elsewhere else a
    session, urgent, gate = await a.new_session(), str(uuid4()), Gate(site, after=3)
    first = await a.begin(session, SLOW)
    await take(a.sse(session), seen("TEXT_MESSAGE_CONTENT", 3))
    content = say("Stop", thinking=0, tokens=9, **gate.keys)
    assert (await other.put_turn(session, content, turn=urgent, on_busy="interrupt"))[0] == 202
    await take(other.sse(session), seen("RUN_STARTED", 2))
    # Sent again while it runs itself: it does not stop itself.
    for client in (a, other):
        status, body = await client.put_turn(session, content, turn=urgent, on_busy="interrupt")
        assert (status, body["state"]) == (200, "running")
    await gate.open()
    log = await take(other.sse(session), ends(2))
    assert runs(log) == [(first["id"], "cancelled"), (urgent, "success")]
    kept = next(m for m in await a.messages(session) if m["role"] == "assistant")
    assert kept["content"]
    assert (await a.turn(session, first["id"]))["state"] == "cancelled"
    await _still_works(a, session)


async def test_an_agent_may_interrupt_by_itself(pair: Pair, as_user: AsUser) -> None:
    a = as_user(pair.a)
    session = await a.new_session("barger")
    first = await a.begin(session, SLOW)
    waiting = await a.begin(session, say("queued"), on_busy="enqueue")
    last = await a.begin(session, say(tokens=1))
    log = await take(a.sse(session), ends(3))
    assert runs(log) == [
        (first["id"], "cancelled"),
        (waiting["id"], "cancelled"),
        (last["id"], "success"),
    ]
    await _still_works(a, session)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("when", "content"),
    [
        ("RUN_STARTED", say(thinking=0, tokens=1, ttft_ms=8000)),
        ("REASONING_MESSAGE_CONTENT", say(thinking=300, tokens=1, delay_ms=30)),
        ("TOOL_CALL_START", say(thinking=1, tool="get_sleep", args=STEPS_ARGS, delay_ms=300)),
        (
            "TOOL_CALL_RESULT",
            say(thinking=0, tool="get_daily_metrics", args=STEPS_ARGS, tokens=300, delay_ms=20),
        ),
        ("TEXT_MESSAGE_CONTENT", SLOW),
    ],
)
async def test_cancel_at_any_moment_leaves_a_history_the_provider_accepts(
    pair: Pair, as_user: AsUser, when: str, content: str, *, elsewhere: bool
) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    canceller = b if elsewhere else a
    session = await a.new_session()
    turn = await a.begin(session, content)
    shown = await take(a.sse(session), seen(when))
    await canceller.cancel(session, turn["id"])
    await canceller.cancel(session, turn["id"])
    log = await take(a.sse(session), ended)
    assert log[: len(shown)] == shown
    assert runs(log) == [(turn["id"], "cancelled")]
    assert (await b.turn(session, turn["id"]))["state"] == "cancelled"
    await _still_works(b, session)


async def test_cancel_in_the_queue_and_after_the_end(site: Site, pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, gate = await a.new_session(), Gate(site)
    first = await a.begin(session, say(tokens=40, **gate.keys))
    second = await a.begin(session, say("never said", tokens=2))
    third = await a.begin(session, say(tokens=2))
    assert (await b.cancel(session, second["id"]))["state"] == "queued"
    await gate.open()
    log = await take(a.sse(session), ends(3))
    assert runs(log) == [(first["id"], "success"), (second["id"], "cancelled"), (third["id"], "success")]
    # Too late is no error and changes nothing.
    for client in (a, b):
        assert (await client.cancel(session, first["id"]))["state"] == "completed"
        assert (await client.cancel(session, second["id"]))["state"] == "cancelled"
    assert await a.log(session) == log
    status, body = await a.call("POST", f"/v1/sessions/{session}/turns/{uuid4()}/cancel")
    assert (status, body["code"]) == (404, "not_found")
    await _still_works(a, session)


async def test_the_same_put_by_many_at_once_is_one_turn(pair: Pair, as_user: AsUser) -> None:
    clients = [as_user(pair.a), as_user(pair.b), as_user(pair.a), as_user(pair.b)]
    session = turn = ""
    for _ in range(5):
        session, turn = await clients[0].new_session(), str(uuid4())
        answers = await asyncio.gather(
            *(client.put_turn(session, say(tokens=2), turn=turn) for client in clients)
        )
        assert sorted(status for status, _ in answers) == [200, 200, 200, 202]
        assert len({body["cursor"] for _, body in answers}) == 1
        log = await take(clients[1].sse(session), ended)
        assert runs(log) == [(turn, "success")]
        assert await clients[1].log(session) == log
    status, body = await clients[0].put_turn(session, "something else", turn=turn)
    assert (status, body["code"]) == (409, "conflict")


async def test_different_turns_by_many_at_once_all_end_once(pair: Pair, as_user: AsUser) -> None:
    clients = [as_user(pair.a), as_user(pair.b)]
    session = await clients[0].new_session()
    turns = [str(uuid4()) for _ in range(8)]
    await asyncio.gather(
        *(clients[i % 2].begin(session, say(tokens=2), turn=turn) for i, turn in enumerate(turns))
    )
    log = await take(clients[0].sse(session), ends(len(turns)))
    assert sorted(runs(log)) == sorted((turn, "success") for turn in turns)
    verify(log)
    await _still_works(clients[1], session)


async def test_a_full_queue_is_a_429_with_retry_after(pair: Pair, as_user: AsUser) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    running = await a.begin(session, SLOW)
    statuses = [(await a.put_turn(session, say(tokens=1)))[0] for _ in range(16)]
    assert statuses == [202] * 15 + [429]
    await a.cancel(session, running["id"])
    log = await take(a.sse(session), ends(16))
    assert [how for _, how in runs(log)] == ["cancelled"] + ["success"] * 15


@pytest.mark.parametrize(
    ("directive", "told"),
    [
        ({"tool": "get_weather", "args": {}}, "There is no tool of this name here."),
        ({"tool": "get_workouts", "args": {}}, "There is no tool of this name here."),
        ({"tool": "get_daily_metrics", "args": {"metric": "hope"}}, "metric"),
        ({"tool": "get_daily_metrics", "args": {**STEPS_ARGS, "start": "2026-13-01"}}, "start"),
        ({"tool": "get_daily_metrics", "args": {**STEPS_ARGS, "end": "1999-01-01"}}, "end"),
    ],
)
async def test_what_a_tool_refuses_is_told_to_the_model(
    pair: Pair, as_user: AsUser, directive: dict[str, Any], told: str
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    events = await take(a.answer(session, say(thinking=0, tokens=2, **directive)))
    assert events[-1].event["outcome"] == {"type": "success"}
    [result] = [each.event for each in events if each.type == "TOOL_CALL_RESULT"]
    assert told in result["content"]
    [stored] = [m for m in await a.messages(session) if m["role"] == "tool"]
    assert stored["error"] == stored["content"] == result["content"]
    await _still_works_with_errors(a, session)


async def _still_works_with_errors(client: Client, session: str) -> None:
    # AG-UI's TOOL_CALL_RESULT cannot say that it is an error; the stored message can.
    verify(await client.log(session))
    events = await take(client.answer(session, say(thinking=0, tokens=1)))
    assert events[-1].type == "RUN_FINISHED"


async def test_too_many_steps_end_the_turn(pair: Pair, as_user: AsUser) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    content = say(thinking=0, tool="get_daily_metrics", args=STEPS_ARGS, rounds=50)
    events = await take(a.answer(session, content))
    assert events[-1].event["result"] == {"stopReason": "notice", "notice": "budget.steps"}
    await _still_works(a, session)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("400", "provider_rejected", 0),
        ("401", "provider_auth", 0),
        ("spend_cap", "provider_spend_limit", 0),
        ("overloaded;after=5", "provider_overloaded", 5),
        ("truncated;after=4", "provider_stream_cut", 4),
        ("cut;after=3", "provider_stream_cut", 3),
        ("reset;after=3", "provider_stream_cut", None),
        ("malformed;after=2", "provider_protocol", 2),
    ],
)
async def test_an_engine_error_ends_the_turn_keeps_what_was_said_and_leaves_the_session_usable(
    pair: Pair, as_user: AsUser, fault: str, code: str, words: int | None
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    content = say(thinking=0, tokens=9, fault=fault, id=uuid4().hex)
    events = await take(a.answer(session, content))
    assert (events[-1].type, events[-1].event["code"]) == ("RUN_ERROR", code)
    turn = await a.turn(session, events[0].event["runId"])
    assert (turn["state"], turn["error_code"]) == ("failed", code)
    said = "".join(m["content"] for m in await a.messages(session) if m["role"] == "assistant")
    assert words is None or len(said.split()) == words
    await _still_works(a, session)


@pytest.mark.parametrize("fault", ["429;retry_after=0.05", "529;retry_after=0.05", "500", "disconnect"])
async def test_an_engine_that_fails_before_its_first_byte_is_asked_again(
    pair: Pair, as_user: AsUser, fault: str
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    content = say(tokens=3, fault=fault, fault_times=1, id=uuid4().hex)
    events = await take(a.answer(session, content))
    assert events[-1].event["outcome"] == {"type": "success"}
    await _still_works(a, session)


@pytest.mark.parametrize(
    ("stop", "kind"),
    [("max_tokens", "RUN_FINISHED"), ("stop_sequence", "RUN_FINISHED"), ("refusal", "RUN_ERROR")],
)
async def test_every_stop_reason_leaves_the_session_usable(
    pair: Pair, as_user: AsUser, stop: str, kind: str
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    events = await take(a.answer(session, say(thinking=2, tokens=4, stop=stop)))
    assert events[-1].type == kind
    await _still_works(a, session)


@pytest.mark.parametrize("fault", ["truncated;after=1", None])
async def test_an_answer_of_white_space_alone_leaves_the_session_usable(
    pair: Pair, as_user: AsUser, fault: str | None
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    broken = {"fault": fault} if fault else {}
    await take(a.answer(session, say(thinking=0, text="   \n", **broken)))
    await _still_works(a, session)


async def test_silence_is_an_answer(pair: Pair, as_user: AsUser) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    events = await take(a.answer(session, say(thinking=0, tokens=0)))
    assert [each.type for each in events] == ["RUN_STARTED", "RUN_FINISHED"]
    await _still_works(a, session)
