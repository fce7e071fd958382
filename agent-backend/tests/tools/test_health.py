"""The coach's tools: the port's laws, then what each of them says."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from agent_backend.db import profiles
from agent_backend.db.pool import Database
from agent_backend.db.profiles import ProfilePut
from agent_backend.errors import ModelRetry
from agent_backend.tools.base import ToolContext
from agent_backend.tools.registry import TOOLS

from ..conftest import replace_database
from ..health_data import PHONE, SCALE, WATCH, quantity, sleep, upload, workout
from .conformance import INJECTION, MAX_CHARACTERS, LookupConformance, Rig

ZONE = "Europe/Berlin"
NOW = dt.datetime(2026, 5, 10, 18, 0, tzinfo=ZoneInfo(ZONE))
SLY = (INJECTION, "watch")


def context_of(db: Database, user: UUID) -> ToolContext:
    return ToolContext(
        db=db,
        user_id=user,
        session_id=uuid4(),
        turn_id=uuid4(),
        tool_use_id="toolu_1",
        time_zone=ZONE,
        locale="de-DE",
        now=NOW,
    )


@pytest.fixture
def context(database: Database) -> ToolContext:
    return context_of(database, uuid4())


async def ask(context: ToolContext, name: str, /, **arguments: Any) -> Any:
    return json.loads((await TOOLS[name].run(context, arguments)).content)


def daily_steps(values: dict[str, float], source: tuple[str, str] = WATCH) -> list[dict[str, Any]]:
    return [quantity("steps", f"{day}T10:00", f"{day}T11:00", value, source) for day, value in values.items()]


def days_back(count: int) -> list[str]:
    """Return the dates of the last days, yesterday last."""
    return [str(NOW.date() - dt.timedelta(days=back)) for back in range(count, 0, -1)]


def busy_life() -> list[dict[str, Any]]:
    """Return more than a year of long texts and numbers: what a result has to bound."""
    days = [str(NOW.date() - dt.timedelta(days=back)) for back in range(420)]
    return [
        *(quantity("heart_rate", f"{day}T12:00", f"{day}T12:00", 61.123456, SLY) for day in days),
        *(
            quantity("heart_rate", f"{day}T12:00", f"{day}T12:01", 999.99, (f"{n}{'y' * 110}", "other"))
            for n, day in enumerate(days[:40])
        ),
        *(sleep("deep", f"{day}T01:00", f"{day}T04:59", SLY) for day in days),
        *(sleep("in_bed", f"{day}T00:00", f"{day}T06:00", PHONE) for day in days),
        *(
            workout(f"{'z' * 50}{n}", f"{day}T08:00", f"{day}T09:00", SLY, note=INJECTION * 10)
            for n, day in enumerate(days)
        ),
    ]


ANNA = uuid4()


@pytest.fixture(scope="module")
def busy_url(postgres_url: str, template: str) -> Generator[str]:
    """Yield a database with Anna's busy life; these tests only read, so one is enough."""
    name = f"test_{uuid4().hex}"
    asyncio.run(_execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    url = replace_database(postgres_url, name)
    asyncio.run(_live(url))
    yield url
    asyncio.run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _live(url: str) -> None:
    async with opened(url) as db:
        await upload(db, ANNA, *busy_life())


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Database]:
    db = Database(url, min_size=1, max_size=2, lock_timeout_ms=5000)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


class HealthTool(LookupConformance):
    """A tool of this module and a year of data."""

    name: ClassVar[str]
    arguments: ClassVar[dict[str, Any]]

    @pytest.fixture
    async def rig(self, busy_url: str) -> AsyncGenerator[Rig]:
        async with opened(busy_url) as db:
            owner = await asyncpg.connect(busy_url)
            yield Rig(
                tool=TOOLS[self.name],
                context=context_of(db, ANNA),
                stranger=context_of(db, uuid4()),
                arguments=self.arguments,
                owner=owner,
            )
            await owner.close()


class TestDailyMetrics(HealthTool):
    name = "get_daily_metrics"
    arguments: ClassVar[dict[str, Any]] = {
        "metric": "heart_rate",
        "start": "2026-03-10",
        "end": "2026-05-10",
    }


class TestWorkouts(HealthTool):
    name = "get_workouts"
    arguments: ClassVar[dict[str, Any]] = {"start": "2025-04-06", "end": "2026-05-10"}


class TestSleep(HealthTool):
    name = "get_sleep"
    arguments: ClassVar[dict[str, Any]] = {"start": "2025-04-06", "end": "2026-05-10"}


class TestTrend(HealthTool):
    name = "get_trend"
    arguments: ClassVar[dict[str, Any]] = {"metric": "heart_rate", "weeks": 52}


async def test_a_year_fits(busy_url: str) -> None:
    async with opened(busy_url) as db:
        asked = {"metric": "heart_rate", "start": "2025-04-06", "end": "2026-05-10"}
        told = await TOOLS["get_daily_metrics"].run(context_of(db, ANNA), asked)
        assert len(told.content) < MAX_CHARACTERS


async def test_days_are_listed_with_what_is_missing_and_today_apart(context: ToolContext) -> None:
    values = {"2026-05-06": 1000.4, "2026-05-07": 3000, "2026-05-10": 200}
    await upload(context.db, context.user_id, *daily_steps(values))
    assert await ask(context, "get_daily_metrics", metric="steps", start="2026-05-04", end="2026-05-31") == {
        "start": "2026-05-04",
        "end": "2026-05-10",
        "time_zone": ZONE,
        "metric": "steps",
        "unit": "count",
        "days": 7,
        "days_with_data": 3,
        "missing_days": ["2026-05-04..2026-05-05", "2026-05-08..2026-05-09"],
        "sources": [WATCH[0]],
        "partial_day": "2026-05-10",
        "summary": {
            "mean_per_day": 2000,
            "lowest_day": {"date": "2026-05-06", "value": 1000},
            "highest_day": {"date": "2026-05-07", "value": 3000},
            "total": 4000,
        },
        "daily": [
            {"date": "2026-05-06", "weekday": "Wed", "value": 1000},
            {"date": "2026-05-07", "weekday": "Thu", "value": 3000},
            {"date": "2026-05-10", "weekday": "Sun", "value": 200},
        ],
    }


async def test_a_discrete_metric_tells_its_spread(context: ToolContext) -> None:
    for minute, value in ((0, 70.04), (20, 71.26), (40, 70.5)):
        stamp = f"2026-05-06T10:{minute:02}"
        await upload(context.db, context.user_id, quantity("body_mass", stamp, stamp, value, SCALE))
    told = await ask(context, "get_daily_metrics", metric="body_mass", start="2026-05-06", end="2026-05-06")
    assert told["daily"] == [
        {"date": "2026-05-06", "weekday": "Wed", "avg": 70.6, "min": 70.0, "max": 71.3, "last": 70.5}
    ]
    assert "total" not in told["summary"]


async def test_a_long_period_is_told_by_week(context: ToolContext) -> None:
    values = dict.fromkeys(days_back(69), 1000.0)
    await upload(context.db, context.user_id, *daily_steps(values))
    told = await ask(context, "get_daily_metrics", metric="steps", start="2026-03-01", end="2026-05-10")
    assert "daily" not in told
    assert told["weekly"][:2] == [
        {"start": "2026-03-02", "days_with_data": 7, "mean_per_day": 1000},
        {"start": "2026-03-09", "days_with_data": 7, "mean_per_day": 1000},
    ]
    assert sum(week["days_with_data"] for week in told["weekly"]) == 69


async def test_no_data_is_said_and_not_zero(context: ToolContext) -> None:
    told = await ask(context, "get_daily_metrics", metric="steps", start="2026-05-01", end="2026-05-03")
    assert (told["days_with_data"], told["daily"], told["missing_days"]) == (
        0,
        [],
        ["2026-05-01..2026-05-03"],
    )
    assert "summary" not in told


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        ("2026-05-02", "2026-05-01", "`end` is before `start`"),
        ("2026-05-11", "2026-05-12", "`start` is in the future: today is 2026-05-10"),
        ("1899-12-31", "1900-01-01", "`start` is before 1900"),
        ("2025-04-05", "2026-05-10", "longer than 400 days"),
    ],
)
@pytest.mark.parametrize("name", ["get_daily_metrics", "get_workouts", "get_sleep"])
async def test_a_period_that_makes_no_sense_is_the_models_mistake(
    name: str, start: str, end: str, reason: str
) -> None:
    unopened = Database("postgresql://nowhere.invalid/x", min_size=1, max_size=1, lock_timeout_ms=1000)
    nowhere = context_of(unopened, ANNA)
    more = {"metric": "steps"} if name == "get_daily_metrics" else {}
    with pytest.raises(ModelRetry, match=reason):
        await TOOLS[name].run(nowhere, {"start": start, "end": end, **more})


async def test_workouts_are_listed_in_local_time_and_summed_once(context: ToolContext) -> None:
    await upload(
        context.db,
        context.user_id,
        workout(
            "running", "2026-05-05T22:30", "2026-05-05T23:00", energy_kcal=300.4, distance_m=5004, note="wet"
        ),
        workout("running", "2026-05-05T22:31", "2026-05-05T23:01", PHONE, energy_kcal=290),
        workout("cycling", "2026-05-07T08:00", "2026-05-07T09:00", WATCH),
    )
    told = await ask(context, "get_workouts", start="2026-05-06", end="2026-05-07")
    assert told["count"] == 2
    assert told["totals"] == [
        {"activity": "cycling", "count": 1, "duration_min": 60, "energy_kcal": 0, "distance_km": 0},
        {"activity": "running", "count": 1, "duration_min": 30, "energy_kcal": 300, "distance_km": 5.0},
    ]
    assert told["workouts"][0] == {
        "date": "2026-05-06",
        "weekday": "Wed",
        "time": "00:30",
        "activity": "running",
        "duration_min": 30,
        "energy_kcal": 300,
        "distance_km": 5.0,
        "source": WATCH[0],
        "note": "wet",
    }
    assert told["workouts"][1]["duplicate"] is True


async def test_workouts_of_one_activity_are_found_however_it_is_written(context: ToolContext) -> None:
    await upload(
        context.db,
        context.user_id,
        workout("traditional_strength_training", "2026-05-05T10:00", "2026-05-05T11:00"),
        workout("running", "2026-05-06T10:00", "2026-05-06T11:00"),
    )
    told = await ask(
        context,
        "get_workouts",
        start="2026-05-01",
        end="2026-05-10",
        activity="Traditional Strength Training",
    )
    assert [each["activity"] for each in told["workouts"]] == ["traditional_strength_training"]
    assert told["other_activities"] == ["running"]


async def test_a_night_is_told_by_stage(context: ToolContext) -> None:
    await upload(
        context.db,
        context.user_id,
        sleep("in_bed", "2026-05-05T21:00", "2026-05-06T05:30", PHONE),
        sleep("asleep", "2026-05-05T21:00", "2026-05-06T05:00", PHONE),
        sleep("core", "2026-05-05T21:30", "2026-05-06T01:30", WATCH),
        sleep("awake", "2026-05-06T01:30", "2026-05-06T01:45", WATCH),
        sleep("deep", "2026-05-06T01:45", "2026-05-06T04:00", WATCH),
    )
    told = await ask(context, "get_sleep", start="2026-05-05", end="2026-05-06")
    assert told["nightly"] == [
        {
            "night": "2026-05-06",
            "weekday": "Wed",
            "asleep_min": 465,
            "from": "23:00",
            "to": "07:00",
            "unspecified_min": 90,
            "awake_min": 15,
            "core_min": 240,
            "deep_min": 135,
            "in_bed_min": 510,
        }
    ]
    assert told["missing_nights"] == ["2026-05-05"]
    assert told["averages"]["asleep_min"] == 465
    assert told["sources"] == [PHONE[0], WATCH[0]]


async def test_a_night_only_in_bed_is_not_slept(context: ToolContext) -> None:
    in_bed = sleep("in_bed", "2026-05-05T21:00", "2026-05-06T05:00", PHONE)
    await upload(context.db, context.user_id, in_bed)
    told = await ask(context, "get_sleep", start="2026-05-06", end="2026-05-06")
    assert told["nightly"] == [{"night": "2026-05-06", "weekday": "Wed", "in_bed_min": 480}]
    assert "averages" not in told


async def test_a_clear_rise_is_called_one(context: ToolContext) -> None:
    rising = {day: 5000.0 + 10 * number for number, day in enumerate(days_back(84))}
    await upload(context.db, context.user_id, *daily_steps(rising))
    told = await ask(context, "get_trend", metric="steps")
    assert (told["direction"], told["change_per_week"], told["days_with_data"]) == ("rising", 70, 84)
    assert (told["from"], told["to"], told["change_percent"]) == (5030, 5800, 15.3)
    assert told["weekly_means"][0] == {"start": "2026-02-15", "mean": 5030}


async def test_with_too_little_data_there_is_no_trend(context: ToolContext) -> None:
    await upload(context.db, context.user_id, *daily_steps(dict.fromkeys(days_back(28), 1000.0)))
    told = await ask(context, "get_trend", metric="steps", weeks=8)
    assert told["enough_data"] is False
    assert told["reason"] == "4 weeks have data on at least 3 days; 5 weeks are needed"
    assert "direction" not in told


async def test_a_weekly_weighing_is_enough_for_a_trend(context: ToolContext) -> None:
    weighings = [
        quantity("body_mass", f"{day}T06:00", f"{day}T06:00", 80 - 0.1 * number, SCALE)
        for number, day in enumerate(days_back(84)[::7])
    ]
    await upload(context.db, context.user_id, *weighings)
    told = await ask(context, "get_trend", metric="body_mass")
    assert (told["direction"], told["change_per_week"]) == ("falling", -0.1)


async def test_weight_and_energy_that_are_switched_off_are_not_told(context: ToolContext) -> None:
    moment = "2026-05-06T10:00"
    await upload(
        context.db,
        context.user_id,
        quantity("body_mass", moment, moment, 71.5, SCALE),
        quantity("active_energy", "2026-05-06T10:00", "2026-05-06T11:00", 715),
        workout("running", "2026-05-06T08:00", "2026-05-06T09:00", energy_kcal=715, distance_m=5000),
    )
    period = {"start": "2026-05-06", "end": "2026-05-06"}

    async def told() -> list[str]:
        return [
            *[
                json.dumps(await ask(context, "get_daily_metrics", metric=metric, **period))
                for metric in ("body_mass", "active_energy")
            ],
            json.dumps(await ask(context, "get_workouts", **period)),
            json.dumps(await ask(context, "get_trend", metric="body_mass", weeks=6)),
        ]

    assert all("71" in text for text in (await told())[:3])
    await profiles.write(
        context.db, context.user_id, ProfilePut(time_zone=ZONE, eating_disorder=True), NOW.astimezone(dt.UTC)
    )
    for text in await told():
        assert "71" not in text
        assert "kcal" not in text
    assert '"distance_km": 5.0' in (await told())[2]


async def test_what_nobody_sees_is_not_told(context: ToolContext) -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "set_goal")
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    await upload(
        context.db,
        context.user_id,
        workout(
            f"run\u200bning{hidden}",
            "2026-05-06T08:00",
            "2026-05-06T09:00",
            ("Watch\u202e", "watch"),
            note=f"with {family}\nand \ufeffrain{hidden}",
        ),
    )
    told = await ask(
        context, "get_workouts", start="2026-05-06", end="2026-05-06", activity="running" + hidden
    )
    [shown] = told["workouts"]
    assert (shown["activity"], shown["source"], shown["note"]) == (
        "running",
        "Watch",
        f"with {family} and rain",
    )
    assert told["totals"][0]["activity"] == told["activity"] == "running"
