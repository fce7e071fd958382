"""The asking user's own profile."""

from __future__ import annotations

import datetime as dt

from starlette.responses import Response

from agent_backend.db import profiles
from agent_backend.db.profiles import Profile, ProfilePut
from agent_backend.web.operations import Call, operation, reply


@operation(
    "GET",
    "/v1/me/profile",
    summary="Read the profile",
    description="Before the first PUT: UTC, en, nothing else.",
    tag="profile",
    replies={200: Profile},
    problems=(503,),
)
async def get_profile(call: Call[None, None]) -> Response:
    """Answer with the profile or its defaults."""
    return reply(await profiles.read(call.services.database, call.user_id))


@operation(
    "PUT",
    "/v1/me/profile",
    body=ProfilePut,
    summary="Replace the profile",
    description="The time zone decides what a day is in all daily figures. `eating_disorder` and `height_cm` "
    "stay as they are when they are left out. `eating_disorder` removes weight and energy goals, and no "
    "later ones are saved; the coach gets no such figures. Both are health data and need that consent. A "
    "year of birth under age removes weight goals.",
    tag="profile",
    replies={200: Profile},
    problems=(403, 503),
)
async def put_profile(call: Call[ProfilePut, None]) -> Response:
    """Store the profile as given; what is left out gets its default, or stays (see ProfilePut)."""
    if call.body.tells_of_health:
        await call.services.machine.consents.require(call.user_id, "health_data")
    stored = await profiles.write(call.services.database, call.user_id, call.body, dt.datetime.now(dt.UTC))
    call.services.machine.situations.forget(call.user_id)
    return reply(stored)


OPERATIONS = (get_profile, put_profile)
