"""Storing samples: idempotent, atomic, each user's own; and a cache of days that is never outdated."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from agent_backend.db import health
from agent_backend.db.metrics import METRICS
from agent_backend.db.pool import Database
from agent_backend.db.samples import Batch, check

from ..health_data import PHONE, WATCH, at, parsed, quantity, sleep, summary, upload, workout

DAY = dt.date(2026, 1, 2)
TABLES = (
    "profiles",
    "health_sources",
    "health_quantities",
    "health_sleep",
    "health_workouts",
    "health_activity_summaries",
    "health_days",
)


def steps(value: float = 100, day: str = "2026-01-02", **more: Any) -> dict[str, Any]:
    return quantity("steps", f"{day}T10:00", f"{day}T11:00", value, **more)


async def total(db: Database, user: UUID, day: dt.date = DAY) -> float | None:
    days = await health.daily(db, user, "steps", day, day, "UTC")
    return days[0].total if days else None


def counts(stored: health.Stored) -> tuple[int, int, int, int]:
    return stored.received, stored.stored, stored.unchanged, stored.replaced


ONE_OF_EACH = (
    steps(),
    sleep("core", "2026-01-01T23:00", "2026-01-02T06:00"),
    workout("running", "2026-01-02T10:00", "2026-01-02T11:00", energy_kcal=500, note="wet"),
    summary("2026-01-02", 512.5, stand_hours=11),
)


async def test_sending_again_changes_nothing(database: Database) -> None:
    user = uuid4()
    assert counts(await upload(database, user, *ONE_OF_EACH)) == (4, 4, 0, 0)
    assert counts(await upload(database, user, *ONE_OF_EACH)) == (4, 0, 4, 0)


async def test_the_newer_upload_of_an_id_stands(database: Database) -> None:
    user = uuid4()
    await upload(database, user, *ONE_OF_EACH)
    changes = ({"value": 7}, {"stage": "rem"}, {"note": None}, {"active_energy_kcal": 1})
    changed = [sample | change for sample, change in zip(ONE_OF_EACH, changes, strict=True)]
    assert counts(await upload(database, user, *changed)) == (4, 0, 0, 4)
    assert await total(database, user) == 7
    assert [each.stage for each in await health.sleep(database, user, DAY, DAY, "UTC")] == ["rem"]
    assert [each.note for each in await health.workouts(database, user, DAY, DAY, "UTC")] == [None]
    assert [each.active_energy_kcal for each in await health.rings(database, user, DAY, DAY)] == [1]


async def test_an_id_twice_in_a_batch_counts_as_if_sent_one_after_the_other(database: Database) -> None:
    user = uuid4()
    one = steps(1)
    stored = await upload(database, user, one, one, one | {"value": 2})
    assert counts(stored) == (3, 1, 1, 1)
    assert await total(database, user) == 2


async def test_an_empty_batch_is_fine(database: Database) -> None:
    assert counts(await upload(database, uuid4())) == (0, 0, 0, 0)


async def test_one_id_may_be_used_by_two_users_and_by_two_kinds(database: Database) -> None:
    anna, ben = uuid4(), uuid4()
    mine, theirs = steps(1), steps(2)
    theirs["id"] = mine["id"]
    assert counts(await upload(database, anna, mine)) == (1, 1, 0, 0)
    assert counts(await upload(database, ben, theirs)) == (1, 1, 0, 0)
    other_kind = sleep("core", "2026-01-01T23:00", "2026-01-02T06:00", id=mine["id"])
    assert counts(await upload(database, anna, other_kind)) == (1, 1, 0, 0)
    assert (await total(database, anna), await total(database, ben)) == (1, 2)


async def test_a_batch_that_fails_leaves_nothing(database: Database) -> None:
    user = uuid4()
    batch = check(parsed([steps(), ONE_OF_EACH[1]]), at("2027-01-01"))
    night = msgspec.structs.replace(batch.rows.sleep[0], b=at("2020-01-01"))  # ends before it begins
    rows = msgspec.structs.replace(batch.rows, sleep=[night])
    with pytest.raises(asyncpg.CheckViolationError):
        await health.store(database, user, Batch(rows, 2, 0, 0))
    assert await total(database, user) is None


@pytest.mark.parametrize("table", TABLES)
async def test_rows_are_visible_to_their_user_only(database: Database, database_url: str, table: str) -> None:
    anna, ben = uuid4(), uuid4()
    for user in (anna, ben):
        await upload(database, user, *ONE_OF_EACH)
        await total(database, user)
        async with database.as_user(user) as connection:
            await connection.execute(
                "INSERT INTO profiles (user_id, time_zone, locale) VALUES ($1, 'UTC', 'en')", user
            )
    assert await database.fetchval(f"SELECT count(*) FROM {table}") == 0
    async with database.as_user(anna) as connection:
        owners = {row["user_id"] for row in await connection.fetch(f"SELECT user_id FROM {table}")}
        assert owners == {anna}
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"TRUNCATE {table}")
    async with database.as_user(anna) as connection:
        if table not in ("health_sources", "health_days"):
            touched = await connection.execute(
                f"UPDATE {table} SET user_id = user_id WHERE user_id = $1", ben
            )
            assert touched == "UPDATE 0"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"UPDATE {table} SET user_id = $1", ben)


async def test_the_list_of_metrics_is_the_same_in_sql(database: Database) -> None:
    rows = await database.fetch("SELECT id, name, unit, cumulative FROM health_metrics ORDER BY id")
    assert [tuple(row) for row in rows] == [
        (metric.id, metric.name, metric.unit, metric.cumulative) for metric in METRICS.values()
    ]


async def test_rings_are_those_uploaded_last(database: Database) -> None:
    user = uuid4()
    await upload(database, user, summary("2026-01-02", 100))
    await upload(database, user, summary("2026-01-02", 200, active_energy_goal_kcal=500))
    rings = await health.rings(database, user, DAY, DAY)
    assert [(each.active_energy_kcal, each.active_energy_goal_kcal) for each in rings] == [(200, 500)]


async def test_a_workout_recorded_twice_is_marked_at_the_lesser_source(database: Database) -> None:
    user = uuid4()
    await upload(
        database,
        user,
        workout("running", "2026-01-02T10:00", "2026-01-02T11:00", WATCH),
        workout("running", "2026-01-02T10:05", "2026-01-02T11:02", PHONE),
        workout("cycling", "2026-01-02T10:05", "2026-01-02T11:02", PHONE),
        workout("running", "2026-01-02T10:50", "2026-01-02T11:50", PHONE),
        workout("running", "2026-01-01T23:59:59", "2026-01-02T00:10", WATCH),
    )
    found = await health.workouts(database, user, DAY, DAY, "UTC")
    assert [(each.activity, each.start.minute, each.device, each.duplicate) for each in found] == [
        ("running", 0, "watch", False),
        *sorted(
            [("cycling", 5, "phone", False), ("running", 5, "phone", True)], key=lambda row: _id(found, row)
        ),
        ("running", 50, "phone", False),
    ]


def _id(found: list[health.StoredWorkout], row: tuple[str, int, str, bool]) -> UUID:
    return next(each.id for each in found if (each.activity, each.start.minute) == row[:2])


# --- the cache ------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_transaction(db: Database) -> AsyncGenerator[asyncpg.Connection]:
    """Yield a connection in a transaction; it commits at the end."""
    connection = await db.connect()
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def somebody_waits(db: Database) -> None:
    """Return when a lock is waited for."""
    async with asyncio.timeout(10):
        while not await db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)


STORE = "SELECT myhealth.health_store($1, $2::json)"
DAILY = "SELECT * FROM myhealth.health_daily($1, 'steps', $2, $2, 'UTC')"


def rows(*samples: dict[str, Any]) -> str:
    return msgspec.json.encode(check(parsed(list(samples)), at("2027-01-01")).rows).decode()


async def test_days_are_computed_once(database: Database, database_url: str) -> None:
    user = uuid4()
    await upload(database, user, steps())
    assert await total(database, user) == 100
    owner = await asyncpg.connect(database_url)
    await owner.execute("DELETE FROM myhealth.health_quantities")
    await owner.close()
    assert await total(database, user) == 100


async def test_an_upload_makes_its_days_new_and_no_others(database: Database, database_url: str) -> None:
    user = uuid4()
    one, other = steps(1), steps(2, day="2026-02-02")
    await upload(database, user, one, other)
    assert (await total(database, user), await total(database, user, dt.date(2026, 2, 2))) == (1, 2)
    await upload(
        database,
        user,
        one | {"start": at("2026-02-02T14:00").isoformat(), "end": at("2026-02-02T15:00").isoformat()},
    )
    assert (await total(database, user), await total(database, user, dt.date(2026, 2, 2))) == (None, 3)
    kept = "SELECT count(*) FROM health_days WHERE day = $1"
    async with database.as_user(user) as connection:
        assert await connection.fetchval(kept, DAY) == 1
    await upload(database, user, steps(5, day="2026-03-02"))
    async with database.as_user(user) as connection:
        assert await connection.fetchval(kept, DAY) == 1


async def test_a_reader_waits_for_an_upload_under_way(database: Database) -> None:
    user = uuid4()
    await upload(database, user, steps(1))
    async with open_transaction(database) as uploading:
        await uploading.execute(
            STORE, user, rows(quantity("steps", "2026-01-02T12:00", "2026-01-02T13:00", 2))
        )
        reading = asyncio.create_task(total(database, user))
        await somebody_waits(database)
    assert await reading == 3
    assert await total(database, user) == 3


async def test_an_upload_waits_for_a_reader_that_keeps_what_it_computed(database: Database) -> None:
    user = uuid4()
    await upload(database, user, steps(1))
    async with open_transaction(database) as reading:
        await reading.fetch(DAILY, user, DAY)
        more = quantity("steps", "2026-01-02T12:00", "2026-01-02T13:00", 2)
        uploading = asyncio.create_task(upload(database, user, more))
        await somebody_waits(database)
    await uploading
    assert await total(database, user) == 3


async def test_users_do_not_wait_for_each_other(database: Database) -> None:
    anna, ben = uuid4(), uuid4()
    async with open_transaction(database) as uploading:
        await uploading.execute(STORE, anna, rows(steps(1)))
        await upload(database, ben, steps(2))
        assert await total(database, ben) == 2


async def test_uploads_and_readers_at_once_end_right(database: Database) -> None:
    user = uuid4()
    start, end = dt.date(2026, 1, 1), dt.date(2026, 1, 20)
    days = [f"2026-01-{day:02}" for day in range(1, 21)]
    batches = [
        [quantity("steps", f"{day}T{hour:02}:00", f"{day}T{hour + 1:02}:00", hour + 1) for day in days]
        for hour in range(12)
    ]
    await asyncio.gather(
        *(upload(database, user, *batch) for batch in batches),
        *(health.daily(database, user, "steps", start, end, "UTC") for _ in range(12)),
    )
    found = await health.daily(database, user, "steps", start, end, "UTC")
    assert [day.total for day in found] == [sum(range(1, 13))] * 20
