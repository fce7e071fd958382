"""The tools of goals: the port's laws, then what they refuse and what they save."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncGenerator
from typing import Any, ClassVar
from uuid import uuid4
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest

from agent_backend.db import goals, profiles
from agent_backend.db.pool import Database
from agent_backend.db.profiles import ProfilePut
from agent_backend.errors import ModelRetry, ToolFailed
from agent_backend.tools.base import ToolContext
from agent_backend.tools.registry import TOOLS

from ..health_data import SCALE, quantity, upload
from .conformance import INJECTION, Rig, ToolConformance

ZONE = "Europe/Berlin"
NOW = dt.datetime(2026, 5, 10, 18, 0, tzinfo=ZoneInfo(ZONE))
WEIGHT = {"kind": "weight", "target": 76, "target_date": "2026-07-05"}
"""From 80 kg in eight weeks: half a kilogram a week."""


def context_of(db: Database) -> ToolContext:
    return ToolContext(
        db=db,
        user_id=uuid4(),
        session_id=uuid4(),
        turn_id=uuid4(),
        tool_use_id="toolu_1",
        time_zone=ZONE,
        locale="de-DE",
        now=NOW,
    )


async def profile(context: ToolContext, **told: Any) -> None:
    put = msgspec.convert({"time_zone": ZONE, "birth_year": 1985, **told}, ProfilePut)
    await profiles.write(context.db, context.user_id, put, NOW.astimezone(dt.UTC))


async def weigh(context: ToolContext, kilograms: float, day: str = "2026-05-09") -> None:
    moment = f"{day}T07:00"
    await upload(context.db, context.user_id, quantity("body_mass", moment, moment, kilograms, SCALE))


@pytest.fixture
async def context(database: Database) -> ToolContext:
    made = context_of(database)
    await profile(made)
    await weigh(made, 80)
    return made


async def call(context: ToolContext, name: str, /, **arguments: Any) -> Any:
    """Run a tool and its effect, as a settling transaction does; each call has an id of its own."""
    own = msgspec.structs.replace(context, tool_use_id=f"toolu_{uuid4().hex}")
    result = await TOOLS[name].run(own, arguments)
    if result.effect is not None:
        async with context.db.pool.acquire() as connection, connection.transaction():
            await result.effect(connection)
    return json.loads(result.content)


async def kinds(context: ToolContext) -> list[str]:
    return [each.kind for each in await goals.read(context.db, context.user_id)]


class GoalTool(ToolConformance):
    """A tool of this module and a user with goals."""

    name: ClassVar[str]
    arguments: ClassVar[dict[str, Any]]

    @pytest.fixture
    async def rig(self, context: ToolContext, database_url: str) -> AsyncGenerator[Rig]:
        await call(context, "set_goal", kind="steps_per_day", target=8000, title=INJECTION)
        owner = await asyncpg.connect(database_url)
        yield Rig(
            tool=TOOLS[self.name],
            context=context,
            stranger=context_of(context.db),
            arguments=self.arguments,
            owner=owner,
        )
        await owner.close()


class TestGetGoals(GoalTool):
    name = "get_goals"
    arguments: ClassVar[dict[str, Any]] = {}

    async def test_a_title_stays_a_json_string(self, rig: Rig) -> None:
        [goal] = json.loads((await rig.tool.run(rig.context, {})).content)["goals"]
        assert goal == {
            "kind": "steps_per_day",
            "target": 8000.0,
            "unit": "steps a day",
            "title": INJECTION,
            "set_by": "coach",
            "since": str(dt.datetime.now(ZoneInfo(ZONE)).date()),
        }


class TestSetGoal(GoalTool):
    name = "set_goal"
    arguments: ClassVar[dict[str, Any]] = {
        "kind": "weight",
        "target": 76,
        "target_date": "2026-07-05",
        "title": "T",
    }

    async def test_it_tells_nobody_what_is_someone_elses(self, rig: Rig) -> None:
        # The stranger has no profile and has never been weighed: nothing is known, so nothing is saved.
        with pytest.raises(ToolFailed, match="birth_year_unknown"):
            await rig.tool.run(rig.stranger, rig.arguments)


class TestRemoveGoal(GoalTool):
    name = "remove_goal"
    arguments: ClassVar[dict[str, Any]] = {"kind": "steps_per_day"}


async def test_a_goal_is_replaced_by_the_next_of_its_kind_and_can_be_removed(context: ToolContext) -> None:
    await call(context, "set_goal", kind="steps_per_day", target=8000)
    saved = await call(context, "set_goal", kind="steps_per_day", target=9000, title="Mehr\u202e gehen")
    assert saved == {
        "kind": "steps_per_day",
        "target": 9000.0,
        "unit": "steps a day",
        "title": "Mehr gehen",
        "status": "saved",
    }
    [goal] = await goals.read(context.db, context.user_id)
    assert (goal.target, goal.title, goal.set_by) == (9000, "Mehr gehen", "coach")
    await call(context, "remove_goal", kind="steps_per_day")
    assert await kinds(context) == []
    with pytest.raises(ModelRetry, match="there are: none"):
        await call(context, "remove_goal", kind="steps_per_day")


async def test_a_refusal_names_field_reason_and_bound(context: ToolContext) -> None:
    with pytest.raises(ToolFailed) as refused:
        await call(context, "set_goal", kind="calories_per_day", target=900)
    assert str(refused.value) == (
        "Not saved (too_low). Argument `target`: "
        "is below the least that is saved, 1500 kcal a day. Bound: 1500."
    )
    with pytest.raises(ToolFailed, match=r"too_fast.*`target_date`.*0\.8 kg a week from 80\.0 kg"):
        await call(context, "set_goal", **WEIGHT | {"target": 70})
    assert await kinds(context) == []


async def test_the_weight_that_counts_is_the_one_at_the_time_of_saving(context: ToolContext) -> None:
    result = await TOOLS["set_goal"].run(context, WEIGHT)
    assert result.effect is not None
    await weigh(context, 95, "2026-05-10")
    with pytest.raises(ToolFailed, match="too_fast"):
        async with context.db.pool.acquire() as connection, connection.transaction():
            await result.effect(connection)
    assert await kinds(context) == []


async def test_the_flag_removes_what_it_forbids_and_holds_from_then_on(context: ToolContext) -> None:
    await call(context, "set_goal", **WEIGHT)
    await call(context, "set_goal", kind="active_energy_per_day", target=400)
    await call(context, "set_goal", kind="calories_per_day", target=2000)
    await call(context, "set_goal", kind="sleep_hours_per_night", target=8)
    late = await TOOLS["set_goal"].run(context, {"kind": "calories_per_day", "target": 2000})
    assert late.effect is not None
    await profile(context, eating_disorder=True)
    assert await kinds(context) == ["sleep_hours_per_night"]
    with pytest.raises(ToolFailed, match="switched_off"):
        async with context.db.pool.acquire() as connection, connection.transaction():
            await late.effect(connection)
    with pytest.raises(ToolFailed, match="switched_off"):
        await call(context, "set_goal", **WEIGHT)
    await profile(context)
    assert await kinds(context) == ["sleep_hours_per_night"], "left out, the flag stays"
    with pytest.raises(ToolFailed, match="switched_off"):
        await call(context, "set_goal", **WEIGHT)


async def test_a_goal_that_is_being_saved_does_not_outlive_the_flag(context: ToolContext) -> None:
    """The profile waits for the goal's transaction, then removes it."""
    result = await TOOLS["set_goal"].run(context, WEIGHT)
    assert result.effect is not None
    async with context.db.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await result.effect(connection)
        writing = asyncio.create_task(profile(context, eating_disorder=True))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(10):
            while not await context.db.fetchval(waiting):
                await asyncio.sleep(0.005)
        assert not writing.done()
        await transaction.commit()
    await writing
    assert await kinds(context) == []


async def test_a_birth_year_under_age_removes_weight_goals(context: ToolContext) -> None:
    await call(context, "set_goal", **WEIGHT)
    await call(context, "set_goal", kind="active_energy_per_day", target=400)
    await profile(context, birth_year=2009)
    assert await kinds(context) == ["active_energy_per_day"]
    with pytest.raises(ToolFailed, match="adults_only"):
        await call(context, "set_goal", kind="calories_per_day", target=2000)
