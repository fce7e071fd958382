"""The asking user's own goals. What the app saves is held to the same bounds as what the coach saves."""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend.db import goals
from agent_backend.errors import Conflict, FieldError, InvalidRequest
from agent_backend.guardrails import GoalKind, guardrails
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.requests import clean_text

_TITLE_LENGTH = 80


class GoalPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A goal to save. `target` in the kind's unit; `weight` needs `target_date`."""

    kind: GoalKind
    target: Annotated[float, Meta(gt=0, lt=100_000)]
    target_date: dt.date | None = None
    title: Annotated[str, Meta(min_length=1, max_length=_TITLE_LENGTH)] | None = None


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A goal that is saved; there is one of a kind. `set_by`: the app, or the coach after the user's yes."""

    id: UUID
    kind: GoalKind
    target: float
    unit: str
    target_date: dt.date | None
    title: str | None
    set_by: goals.SetBy
    updated_at: dt.datetime


class SavedGoal(msgspec.Struct, frozen=True, kw_only=True):
    """The goal of this kind from now on."""

    id: UUID
    kind: GoalKind
    target: float
    unit: str
    target_date: dt.date | None
    title: str | None


class GoalList(msgspec.Struct, frozen=True, kw_only=True):
    """All goals of the user."""

    goals: list[Goal]


@operation(
    "GET",
    "/v1/me/goals",
    summary="List goals",
    tag="goals",
    replies={200: GoalList},
    problems=(503,),
)
async def list_goals(call: Call[None, None]) -> Response:
    """Answer with the user's goals."""
    found = await goals.read(call.services.database, call.user_id)
    return reply(GoalList(goals=[_shown(each) for each in found]))


@operation(
    "PUT",
    "/v1/me/goals/{goal_id}",
    summary="Set a goal",
    description="The client makes the id. It replaces the user's goal of the same kind; sending the same "
    "again is harmless. A target outside safe bounds is a 422 that names the bound.",
    tag="goals",
    body=GoalPut,
    replies={200: SavedGoal},
    problems=(403, 409, 503),
)
async def put_goal(call: Call[GoalPut, None]) -> Response:
    """Check and save in one transaction; a goal tells of its user's health."""
    await call.services.machine.consents.require(call.user_id, "health_data")
    goal_id, body = call.uuid("goal_id"), call.body
    title = body.title
    if title is not None:
        title = clean_text("$.title", title, _TITLE_LENGTH)
    goal = goals.NewGoal(
        id=goal_id,
        kind=body.kind,
        target=body.target,
        target_date=body.target_date,
        title=title,
        set_by="user",
    )
    database = call.services.database
    try:
        async with database.pool.acquire() as connection, connection.transaction():
            refused = await goals.save(connection, call.user_id, goal, dt.datetime.now(dt.UTC))
    except goals.IdTaken:
        raise Conflict("A goal of another kind stands under this id.") from None
    if refused is not None:
        field = f"$.{refused.field}"
        raise InvalidRequest(f"{field}: {refused.reason}", errors=(FieldError(field, refused.reason),))
    return reply(
        SavedGoal(
            id=goal.id,
            kind=goal.kind,
            target=goal.target,
            unit=guardrails().goals[goal.kind].unit,
            target_date=goal.target_date,
            title=title,
        )
    )


@operation(
    "DELETE",
    "/v1/me/goals/{goal_id}",
    summary="Remove a goal",
    description="A goal that is not there is removed already.",
    tag="goals",
    replies={204: None},
    problems=(503,),
)
async def delete_goal(call: Call[None, None]) -> Response:
    """Remove it."""
    await goals.remove(call.services.database, call.user_id, call.uuid("goal_id"))
    return Response(status_code=204)


def _shown(goal: goals.Goal) -> Goal:
    return Goal(
        id=goal.id,
        kind=goal.kind,
        target=goal.target,
        unit=guardrails().goals[goal.kind].unit,
        target_date=goal.target_date,
        title=goal.title,
        set_by=goal.set_by,
        updated_at=goal.updated_at,
    )


OPERATIONS = (list_goals, put_goal, delete_goal)
