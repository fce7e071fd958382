"""A user's goals: one of a kind, checked by `guardrails` in the transaction that saves it."""

from __future__ import annotations

import datetime as dt
from typing import Literal, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from agent_backend.db.pool import Connection, Database, queries
from agent_backend.guardrails import Facts, GoalKind, Refusal, WantedGoal, check

SetBy: TypeAlias = Literal["user", "coach"]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A goal that is saved; `target` in the kind's unit (`guardrails.json`)."""

    id: UUID
    kind: GoalKind
    target: float
    target_date: dt.date | None
    title: str | None
    set_by: SetBy
    created_at: dt.datetime
    updated_at: dt.datetime


class NewGoal(WantedGoal, frozen=True, kw_only=True):
    """A goal to save under an id of the caller's making; it replaces the one of its kind."""

    id: UUID
    title: str | None = None
    set_by: SetBy


class IdTaken(Exception):
    """A goal of another kind stands under this id."""


async def read(db: Database, user_id: UUID) -> list[Goal]:
    """Return the user's goals, by kind."""
    async with db.as_user(user_id) as connection:
        rows = await connection.fetch(queries("goals")["read"])
    return [Goal(**row) for row in rows]


async def refusal(db: Database, user_id: UUID, goal: WantedGoal, now: dt.datetime) -> Refusal | None:
    """Return why the goal would not be saved as things are now; `save` asks again."""
    async with db.pool.acquire() as connection, connection.transaction():
        return check(goal, await _facts(connection, user_id, now, lock=False))


async def save(connection: Connection, user_id: UUID, goal: NewGoal, now: dt.datetime) -> Refusal | None:
    """Check and save in the caller's transaction; returns why it was not saved, or None.

    The facts are read under the user's lock, which holds until the transaction ends: what the goal was
    checked against stays true until it is there. Raises IdTaken.
    """
    refused = check(goal, await _facts(connection, user_id, now, lock=True))
    if refused is not None:
        return refused
    status = await connection.fetchval(
        queries("goals")["save"],
        *(user_id, goal.id, goal.kind, goal.target, goal.target_date, goal.title, goal.set_by),
    )
    if status != "saved":
        raise IdTaken
    return None


async def act_as(connection: Connection, user_id: UUID) -> None:
    """Act as the user to the end of the caller's transaction."""
    await connection.execute(queries("goals")["act_as"], user_id)


async def remove(db: Database, user_id: UUID, goal_id: UUID) -> None:
    """Remove a goal; one that is not there is removed already."""
    async with db.as_user(user_id) as connection:
        await connection.execute(queries("goals")["remove_id"], user_id, goal_id)


async def remove_kinds(connection: Connection, user_id: UUID, kinds: list[GoalKind]) -> None:
    """Remove goals of these kinds in the caller's transaction, which must act as the user already."""
    await connection.execute(queries("goals")["remove_kinds"], user_id, kinds)


async def _facts(connection: Connection, user_id: UUID, now: dt.datetime, *, lock: bool) -> Facts:
    row = await connection.fetchrow(queries("goals")["facts"], user_id, lock)
    assert row is not None, "the function returns one row"
    zone = ZoneInfo(row["o_time_zone"] or "UTC")
    weighed_at: dt.datetime | None = row["o_weighed_at"]
    return Facts(
        today=now.astimezone(zone).date(),
        birth_year=row["o_birth_year"],
        eating_disorder=bool(row["o_eating_disorder"]),
        height_cm=row["o_height_cm"],
        body_mass_kg=row["o_body_mass_kg"],
        weighed_on=None if weighed_at is None else weighed_at.astimezone(zone).date(),
    )
