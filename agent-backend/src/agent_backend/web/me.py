"""The asking user's own profile."""

from __future__ import annotations

import datetime as dt

from starlette.responses import Response

from agent_backend.db import profiles
from agent_backend.db.profiles import Profile
from agent_backend.web.operations import Call, operation, reply


@operation(
    "GET",
    "/v1/me/profile",
    summary="Read the profile",
    description="Before the first PUT: UTC, en, no year of birth.",
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
    body=Profile,
    summary="Replace the profile",
    description="The time zone decides what a day is in all daily figures.",
    tag="profile",
    replies={200: Profile},
    problems=(503,),
)
async def put_profile(call: Call[Profile, None]) -> Response:
    """Store the profile as given; what is left out gets its default."""
    await profiles.write(call.services.database, call.user_id, call.body, dt.datetime.now(dt.UTC))
    return reply(call.body)


OPERATIONS = (get_profile, put_profile)
