"""The coach's goals: looking them up, and the first tools that change something.

What may be saved is `guardrails`' business. It is asked before the user is asked for a yes, when the tool
runs, and for good by the effect: under the user's lock, in the transaction that settles the result.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID, uuid5

import msgspec
from msgspec import Meta

from agent_backend.db import goals
from agent_backend.db.pool import Connection
from agent_backend.errors import ModelRetry, ToolFailed
from agent_backend.guardrails import GoalKind, Refusal, WantedGoal, guardrails
from agent_backend.tools.base import ToolContext, ToolResult
from agent_backend.tools.function import tool
from agent_backend.tools.texts import TITLE_LENGTH, shown

_encode = msgspec.json.Encoder().encode

Kind = Annotated[GoalKind, "What the goal is about; weight is body weight, calories are food energy"]


class _Save(msgspec.Struct, frozen=True):
    """The effect of set_goal."""

    user_id: UUID
    goal: goals.NewGoal
    now: dt.datetime

    async def __call__(self, connection: Connection) -> None:
        try:
            refused = await goals.save(connection, self.user_id, self.goal, self.now)
        except goals.IdTaken:
            raise ToolFailed("Not saved: this call has set another goal.") from None
        if refused is not None:
            raise _told(refused)


class _Remove(msgspec.Struct, frozen=True):
    """The effect of remove_goal."""

    user_id: UUID
    kind: GoalKind

    async def __call__(self, connection: Connection) -> None:
        await goals.act_as(connection, self.user_id)
        await goals.remove_kinds(connection, self.user_id, [self.kind])


@tool
async def get_goals(context: ToolContext) -> dict[str, Any]:
    """List the goals the person has set: target, unit, title, and the day to reach it by if there is one.

    There is at most one goal of a kind. `set_by` says whether the person or the coach saved it.
    """
    found = await goals.read(context.db, context.user_id)
    return {
        "time_zone": context.time_zone,
        "today": context.now.date(),
        "goals": [_goal(each, context) for each in found],
    }


@tool
async def set_goal(
    context: ToolContext,
    kind: Kind,
    target: Annotated[float, Meta(gt=0, lt=100_000, description="The number to reach, in the kind's unit")],
    target_date: Annotated[
        dt.date | None, "Day to reach it by, YYYY-MM-DD; weight needs one, others rarely"
    ] = None,
    title: Annotated[
        Annotated[str, Meta(min_length=1, max_length=TITLE_LENGTH)] | None,
        "A short name, in the person's language",
    ] = None,
) -> ToolResult:
    """Save a goal the person wants; it replaces their goal of the same kind.

    Units: steps, kcal and minutes a day, hours a night, workouts a week, kg, kcal of food a day. The app asks
    the person first. A goal outside safe bounds is refused with the bound: say so, and respect it.
    """
    goal = goals.NewGoal(
        id=uuid5(context.session_id, context.tool_use_id),
        kind=kind,
        target=target,
        target_date=target_date,
        title=None if title is None else shown(title, TITLE_LENGTH) or None,
        set_by="coach",
    )
    saved = {**_wanted(goal), "title": goal.title, "status": "saved"}
    return ToolResult(content=_encode(saved).decode(), effect=_Save(context.user_id, goal, context.now))


@set_goal.checked_by
async def _is_allowed(
    context: ToolContext, kind: GoalKind, target: float, target_date: dt.date | None, **_: Any
) -> None:
    wanted = WantedGoal(kind=kind, target=target, target_date=target_date)
    refused = await goals.refusal(context.db, context.user_id, wanted, context.now)
    if refused is not None:
        raise _told(refused)


@tool
async def remove_goal(context: ToolContext, kind: Kind) -> ToolResult:
    """Remove the person's goal of a kind, when they no longer want it. The app asks the person first."""
    content = _encode({"kind": kind, "status": "removed"}).decode()
    return ToolResult(content=content, effect=_Remove(context.user_id, kind))


@remove_goal.checked_by
async def _is_there(context: ToolContext, kind: GoalKind) -> None:
    found = await goals.read(context.db, context.user_id)
    if all(each.kind != kind for each in found):
        kinds = ", ".join(each.kind for each in found) or "none"
        raise ModelRetry(f"Argument `kind`: there is no goal of this kind; there are: {kinds}.")


def _wanted(goal: WantedGoal) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": goal.kind,
        "target": goal.target,
        "unit": guardrails().goals[goal.kind].unit,
    }
    if goal.target_date is not None:
        told["target_date"] = goal.target_date
    return told


def _goal(goal: goals.Goal, context: ToolContext) -> dict[str, Any]:
    wanted = WantedGoal(kind=goal.kind, target=goal.target, target_date=goal.target_date)
    told = _wanted(wanted)
    if goal.title is not None:
        told["title"] = shown(goal.title, TITLE_LENGTH)
    since = goal.updated_at.astimezone(context.now.tzinfo).date()
    return {**told, "set_by": goal.set_by, "since": since}


def _told(refused: Refusal) -> ToolFailed:
    """Name field, reason and bound for the model."""
    bound = "" if refused.bound is None else f" Bound: {refused.bound:g}."
    return ToolFailed(f"Not saved ({refused.code}). Argument `{refused.field}`: {refused.reason}.{bound}")
