"""A user's samples and the figures computed from them.

What the figures mean (the SQL of migration `0003_health` computes them):

- A day is a calendar day of the time zone; so a travel day is a day of the zone the profile names.
- Cumulative metrics: at each instant one sample counts, spread evenly over its time: that of the best source
  (watch, then phone, then others; then by name), within a source the one that began first. What crosses
  midnight is split.
- Discrete metrics: samples belong to the day they began in; all sources count alike. In the average each ten
  minutes that have samples weigh alike: a watch measures every few seconds in a workout and every few minutes
  at rest, so a mean of samples would be the workout's.
- Days are computed when first read and kept until an upload touches them.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import msgspec

from agent_backend.db.metrics import MetricName
from agent_backend.db.pool import Database, queries
from agent_backend.db.samples import Batch, Device, Stage

_encode = msgspec.json.Encoder().encode


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch: received = stored + unchanged + replaced."""

    received: int
    stored: int
    """New."""
    unchanged: int
    """Were there already."""
    replaced: int
    """Were there with other content; the newer upload stands."""


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """One day that has data: `total` of a cumulative metric, or the spread of a discrete one."""

    date: dt.date
    total: float | None
    minimum: float | None
    average: float | None
    maximum: float | None
    latest: float | None
    samples: int
    sources: list[str]
    """Names, best first; of a cumulative metric only those that count."""


class SleepStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of one night (noon to noon, named by the day it ends in), overlapping sources resolved."""

    night: dt.date
    stage: Stage
    minutes: float
    start: dt.datetime
    """The stage's first instant of the night."""
    end: dt.datetime
    sources: list[str]


class StoredWorkout(msgspec.Struct, frozen=True, kw_only=True):
    """One workout. `duplicate`: a better source has one of the same activity over more than half of it."""

    id: UUID
    activity: str
    start: dt.datetime
    end: dt.datetime
    duration_s: float
    energy_kcal: float | None
    distance_m: float | None
    source: str
    device: Device
    note: str | None
    duplicate: bool


class Rings(msgspec.Struct, frozen=True, kw_only=True):
    """A day's activity summary as the phone reported it last."""

    date: dt.date
    active_energy_kcal: float | None
    exercise_minutes: float | None
    stand_hours: float | None
    active_energy_goal_kcal: float | None


async def store(db: Database, user_id: UUID, batch: Batch) -> Stored:
    """Store a batch, whole or not at all; storing it again changes nothing."""
    row = await db.fetchrow(queries("health")["store"], user_id, _encode(batch.rows).decode())
    assert row is not None
    return Stored(
        received=batch.received,
        stored=row["o_stored"],
        unchanged=row["o_unchanged"] + batch.repeated_same,
        replaced=row["o_replaced"] + batch.repeated_other,
    )


async def daily(
    db: Database, user_id: UUID, metric: MetricName, start: dt.date, end: dt.date, time_zone: str
) -> list[Day]:
    """Return the days from `start` to `end` (both included) that have data, in order."""
    rows = await db.fetch(queries("health")["daily"], user_id, metric, start, end, time_zone)
    return [
        Day(
            date=row["o_day"],
            total=row["o_total"],
            minimum=row["o_minimum"],
            average=row["o_average"],
            maximum=row["o_maximum"],
            latest=row["o_latest"],
            samples=row["o_samples"],
            sources=row["o_sources"],
        )
        for row in rows
    ]


async def sleep(
    db: Database, user_id: UUID, start: dt.date, end: dt.date, time_zone: str
) -> list[SleepStage]:
    """Return the stages of the nights `start` to `end` (the mornings' dates), in order."""
    rows = await db.fetch(queries("health")["nights"], user_id, start, end, time_zone)
    return [
        SleepStage(
            night=row["o_night"],
            stage=row["o_stage"],
            minutes=row["o_minutes"],
            start=row["o_from"],
            end=row["o_until"],
            sources=row["o_sources"],
        )
        for row in rows
    ]


async def workouts(
    db: Database, user_id: UUID, start: dt.date, end: dt.date, time_zone: str
) -> list[StoredWorkout]:
    """Return the workouts that began on the days `start` to `end`, in order."""
    return await _as(StoredWorkout, db, user_id, queries("health")["workouts"], start, end, time_zone)


async def rings(db: Database, user_id: UUID, start: dt.date, end: dt.date) -> list[Rings]:
    """Return the activity summaries of the dates `start` to `end`, in order."""
    return await _as(Rings, db, user_id, queries("health")["rings"], start, end)


async def _as(into: Any, db: Database, user_id: UUID, query: str, *args: Any) -> Any:
    async with db.as_user(user_id) as connection:
        rows = await connection.fetch(query, *args)
    return [into(**row) for row in rows]
