"""Red flags in turns: no model, no tool, the same end after a takeover, and a history the provider takes."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any
from uuid import UUID

import pytest

from agent_backend.db import sessions as store
from agent_backend.telemetry import metrics
from agent_backend.tools.base import ToolContext, ToolResult
from agent_backend.transcript import StoredMessage, with_notice
from agent_backend.turns import safety
from agent_backend.turns.machine import Machine
from agent_backend.web.stream import Placed

from .conftest import Fleet, kind

UNSAFE = "You should eat 700 kcal a day."
SUICIDAL = "Ich will nicht mehr leben"


class Probe:
    """A tool that counts its calls."""

    name = "probe"
    description = "Notes that it was called."

    def __init__(self) -> None:
        self.calls = 0
        self.input_schema: dict[str, Any] = {"type": "object", "properties": {}}

    async def run(self, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
        del context, arguments
        self.calls += 1
        return ToolResult(content="noted")


def asked(emulator_url: str, needle: str) -> list[dict[str, Any]]:
    """Return the bodies of model calls in whose messages `needle` stands."""
    with urllib.request.urlopen(f"{emulator_url}/_emulator/requests?limit=200") as response:
        seen = json.loads(response.read())
    return [each["body"] for each in seen["requests"] if needle in json.dumps(each["body"]["messages"])]


def text_of(events: list[Placed]) -> str:
    decoded = [json.loads(each.event) for each in events]
    return "".join(e["delta"] for e in decoded if e["type"] == "TEXT_MESSAGE_CONTENT")


async def stored(fleet: Fleet, machine: Machine, session: UUID) -> list[StoredMessage]:
    read = await store.read_messages(machine.database, fleet.user, session)
    assert read is not None
    return read.messages


async def test_a_red_flag_is_answered_without_the_model(fleet: Fleet, emulator_url: str) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    before = metrics.safety_flags["suicidality"]
    turn = await fleet.send(machine, session, f"{SUICIDAL} {session}")
    events = await fleet.until_end(machine, session)
    assert [kind(each) for each in events] == [
        *("RUN_STARTED", "CUSTOM", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"),
        "RUN_FINISHED",
    ]
    notice = json.loads(events[1].event)
    assert (notice["name"], notice["value"]) == ("notice", "safety.suicidality")
    assert "988" in text_of(events)
    assert asked(emulator_url, str(session)) == []
    assert metrics.safety_flags["suicidality"] == before + 1
    row = await store.read_turn(machine.database, fleet.user, session, turn)
    assert row is not None
    assert (row.state, row.model_calls, row.cost_usd_micros) == ("completed", 0, 0)


async def test_neither_a_budget_that_is_used_up_nor_a_dead_model_is_in_the_way(fleet: Fleet) -> None:
    machine = await fleet.machine(usd_micros_per_turn=0, max_steps=0)
    session = await fleet.session(machine)
    await fleet.send(machine, session, "my chest hurts [[emulator: fault=500]]")
    events = await fleet.until_end(machine, session)
    assert kind(events[-1]) == "RUN_FINISHED"
    assert "emergency number" in text_of(events)


async def test_the_next_turn_goes_to_the_model_with_a_word_of_caution(
    fleet: Fleet, emulator_url: str
) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, SUICIDAL)
    await fleet.until_end(machine, session)
    for n in range(5):
        await fleet.send(machine, session, f'turn {n} {session} [[emulator: text="fine"]]')
    events = await fleet.until_end(machine, session, runs=6)
    assert kind(events[-1]) == "RUN_FINISHED"
    bodies = asked(emulator_url, str(session))
    assert len(bodies) == 5
    last = [json.dumps([m for m in body["messages"] if m["role"] == "system"][-1]) for body in bodies]
    assert ["warning sign (suicidality)" in each for each in last] == [True, True, True, False, False]


async def test_a_follow_up_that_says_it_got_worse_gets_the_text_again(
    fleet: Fleet, emulator_url: str
) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    for text in ("I have chest pain", "it's getting worse"):
        await fleet.send(machine, session, f"{text} {session}")
    events = await fleet.until_end(machine, session, runs=2)
    notices = [json.loads(e.event)["value"] for e in events if kind(e) == "CUSTOM"]
    assert notices == ["safety.cardiac", "safety.cardiac"]
    assert asked(emulator_url, str(session)) == []


async def test_without_a_flag_before_it_the_same_words_are_nothing(fleet: Fleet, emulator_url: str) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, f"my form is getting worse {session}")
    await fleet.until_end(machine, session)
    assert len(asked(emulator_url, str(session))) == 1


async def test_an_unsafe_answer_stays_and_is_followed_by_a_fixed_text(
    fleet: Fleet, emulator_url: str
) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, f'diet? [[emulator: text="{UNSAFE}"]]')
    events = await fleet.until_end(machine, session)
    assert text_of(events).startswith(UNSAFE)
    assert "Stop: so low a calorie target" in text_of(events)
    assert kind(events[-1]) == "RUN_FINISHED"
    messages = await stored(fleet, machine, session)
    assert [m.role for m in messages] == ["user", "system", "assistant", "assistant"]
    assert messages[-1].id.endswith("~safety.answer_calories")
    await fleet.send(machine, session, f'and now? {session} [[emulator: text="fine"]]')
    events = await fleet.until_end(machine, session, runs=2)
    assert text_of(events).endswith("fine")
    (body,) = asked(emulator_url, str(session))
    # What the model said wrong is no warning sign of the user's.
    assert "warning sign" not in json.dumps(body)


async def test_an_unsafe_answer_calls_no_more_tools(fleet: Fleet, emulator_url: str) -> None:
    """The text comes in the first step, together with a call; the call gets an error, the model no say."""
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe})
    session = await fleet.session(machine)
    turn = await fleet.send(machine, session, f"hello {session} [[emulator: tool=probe]]")
    await fleet.until_end(machine, session)
    assert probe.calls == 1
    messages = await stored(fleet, machine, session)
    call = next(m for m in messages if '"tool_use"' in m.content)
    blocks = [{"type": "text", "text": UNSAFE}, *json.loads(call.content)]
    said = StoredMessage(call.n, call.id, str(turn), "assistant", json.dumps(blocks))
    words = await safety.Watch(str(turn)).stop([said], "en")
    assert words is not None
    assert words.notice == "safety.answer_calories"


async def test_a_turn_taken_over_after_an_unsafe_answer_comes_to_the_same_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, emulator_url: str
) -> None:
    machine = await fleet.machine("first", lease=1.5)
    session = await fleet.session(machine)
    reached = asyncio.Event()

    async def dies(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as broken:
        # The owner stops between settling the answer and saying the fixed text.
        broken.setattr("agent_backend.turns.turn.TurnRun.say", dies)
        await fleet.send(machine, session, f'diet? {session} [[emulator: text="{UNSAFE}"]]')
        async with asyncio.timeout(10):
            await reached.wait()
        await machine.stop()
    second = await fleet.machine("second", lease=1.5)
    async with asyncio.timeout(10):
        events = await fleet.until_end(second, session)
    assert kind(events[-1]) == "RUN_FINISHED"
    assert (await stored(fleet, second, session))[-1].id.endswith("~safety.answer_calories")
    assert len(asked(emulator_url, str(session))) == 1, "the model is not asked again"


async def test_a_flagged_message_is_answered_though_it_was_cancelled_or_overtaken(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    turn = await fleet.send(machine, session, SUICIDAL)
    await machine.commands.cancel(fleet.user, session, turn)
    await fleet.send(machine, session, 'sorry [[emulator: text="fine"]]', on_busy="interrupt")
    events = await fleet.until_end(machine, session, runs=2)
    assert "safety.suicidality" in [json.loads(e.event).get("value") for e in events]


@pytest.mark.parametrize("on_busy", [None, "enqueue", "reject"])
async def test_a_flagged_message_does_not_wait_behind_a_running_turn(
    fleet: Fleet, on_busy: str | None
) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, "long [[emulator: tokens=9000 delay_ms=50]]")
    turn = await fleet.send(machine, session, SUICIDAL, on_busy=on_busy)
    events = [json.loads(each.event) for each in await fleet.until_end(machine, session, runs=2)]
    ends = [each["outcome"]["type"] for each in events if each["type"] == "RUN_FINISHED"]
    assert ends == ["cancelled", "success"]
    # Sent again it is the same turn.
    again = await machine.commands.put_turn(fleet.user, session, turn, text=SUICIDAL, on_busy=on_busy)  # pyright: ignore[reportArgumentType]
    assert again.status == "same"


def test_a_client_cannot_hide_a_message_behind_a_mark() -> None:
    marked = StoredMessage(
        1, with_notice("mine", "safety.cardiac"), "t", "user", '[{"type":"text","text":"x"}]'
    )
    assert safety.earlier_flag([marked], "u") is None


async def test_a_user_message_with_a_marked_id_is_checked(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, SUICIDAL, message_id=with_notice("mine", "safety.cardiac"))
    events = await fleet.until_end(machine, session)
    assert "safety.suicidality" in [json.loads(e.event).get("value") for e in events]
