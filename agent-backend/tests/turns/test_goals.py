"""Goals in turns: asked for only what can be, saved once, and nothing for who is too young by now."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any
from uuid import UUID

from agent_backend.db import goals, profiles, tool_calls
from agent_backend.db.pool import Connection
from agent_backend.db.profiles import ProfilePut
from agent_backend.errors import ToolFailed
from agent_backend.tools.base import ToolContext, ToolResult
from agent_backend.tools.registry import TOOLS
from agent_backend.turns.machine import Machine
from agent_backend.web.stream import Placed

from .conftest import Fleet, kind

GOALS = {name: TOOLS[name] for name in ("get_goals", "set_goal", "remove_goal")}


def ask(tool: str, **arguments: Any) -> str:
    return f"[[emulator: tool={tool} args={json.dumps(arguments)} tokens=2]]"


def results(events: list[Placed]) -> list[str]:
    return [json.loads(each.event)["content"] for each in events if kind(each) == "TOOL_CALL_RESULT"]


async def birth_year(fleet: Fleet, machine: Machine, year: int) -> None:
    await profiles.write(machine.database, fleet.user, ProfilePut(birth_year=year), dt.datetime.now(dt.UTC))
    machine.situations.forget(fleet.user)


async def parked_call(fleet: Fleet, machine: Machine, session: UUID) -> str:
    async for placed in fleet.follow(machine, session):
        if kind(placed) == "CUSTOM":
            return json.loads(placed.event)["value"]["toolCallId"]
    raise AssertionError


async def test_a_goal_is_saved_after_the_users_yes(fleet: Fleet) -> None:
    machine = await fleet.machine(tools=GOALS, approvals=("set_goal", "remove_goal"))
    session = await fleet.session(machine)
    await fleet.send(machine, session, ask("set_goal", kind="steps_per_day", target=9000))
    call = await parked_call(fleet, machine, session)
    assert await goals.read(machine.database, fleet.user) == []
    await machine.commands.put_result(fleet.user, session, call, status="ok", content=None, device=None)
    [result] = results(await fleet.until_end(machine, session))
    assert json.loads(result)["status"] == "saved"
    [goal] = await goals.read(machine.database, fleet.user)
    assert (goal.kind, goal.target, goal.set_by) == ("steps_per_day", 9000, "coach")


async def test_nobody_is_asked_for_what_is_refused_anyway(fleet: Fleet) -> None:
    machine = await fleet.machine(tools=GOALS, approvals=("set_goal", "remove_goal"))
    await birth_year(fleet, machine, 1985)
    session = await fleet.session(machine)
    for asked in (
        ask("set_goal", kind="calories_per_day", target=500),
        ask("set_goal", kind="steps_per_day", target="many"),
        ask("remove_goal", kind="weight"),
    ):
        await fleet.send(machine, session, asked)
    events = await fleet.until_end(machine, session, runs=3)
    assert "CUSTOM" not in map(kind, events)
    told = results(events)
    assert ["1500" in told[0], "`target`" in told[1], "there are: none" in told[2]] == [True] * 3
    assert await tool_calls.read(machine.database, fleet.user, session) == []


class Regretful:
    """A tool whose effect writes something and then refuses."""

    name = "regret"
    description = "Changes its mind."
    input_schema: dict[str, Any] = {"type": "object", "properties": {}}  # noqa: RUF012 - as the port has it

    async def run(self, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
        assert arguments == {}
        saved = goals.NewGoal(id=context.turn_id, kind="steps_per_day", target=9000, set_by="coach")

        async def effect(connection: Connection) -> None:
            assert await goals.save(connection, context.user_id, saved, context.now) is None
            raise ToolFailed("Things have changed.")

        return ToolResult(content="{}", effect=effect)


async def test_an_effect_that_refuses_leaves_nothing_and_the_model_is_told(fleet: Fleet) -> None:
    machine = await fleet.machine(tools={"regret": Regretful()})
    session = await fleet.session(machine)
    await fleet.send(machine, session, ask("regret"))
    events = await fleet.until_end(machine, session)
    assert results(events) == ["Things have changed."]
    assert kind(events[-1]) == "RUN_FINISHED"
    assert await goals.read(machine.database, fleet.user) == []
    assert await fleet.events(machine, session) == events, "the log has every event once"


async def test_a_turn_that_waited_while_its_user_turned_out_too_young_says_so(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate()
    await fleet.send(machine, session, f"[[emulator: tokens=3 {gate}]]")
    await gate.reached()
    turn = await fleet.send(machine, session, "[[emulator: tokens=3]]")
    await birth_year(fleet, machine, dt.datetime.now(dt.UTC).year - 12)
    await gate.open()
    events = await fleet.until_end(machine, session, runs=2)
    last = [json.loads(each.event) for each in events[-5:]]
    assert [event["type"] for event in last] == [
        "CUSTOM",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_ERROR",
    ]
    assert (last[0]["value"], last[-1]["code"]) == ("age.too_young", "age.too_young")
    assert "from 16" in last[2]["delta"]
    calls = "SELECT model_calls FROM read_turn($1, $2, $3)"
    assert await machine.database.fetchval(calls, fleet.user, session, turn) == 0
