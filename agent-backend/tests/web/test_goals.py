from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent_backend.app import create_app
from agent_backend.devtoken import user_id
from agent_backend.settings import Settings

from ..consenting import agree
from ..health_data import SCALE, quantity
from .serving import headers_for, serving, settings_for

STEPS = {"kind": "steps_per_day", "target": 8000, "title": "Gehen"}


class Api:
    """One server, any user."""

    def __init__(self, http: aiohttp.ClientSession, settings: Settings) -> None:
        self._http = http
        self._settings = settings

    async def call(self, method: str, path: str, body: Any = None, user: str = "alice") -> tuple[int, Any]:
        headers = headers_for(self._settings, user)
        async with self._http.request(method, path, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def agree(self, user: str) -> None:
        await agree(self._http, **headers_for(self._settings, user))

    async def goals(self, user: str = "alice") -> list[dict[str, Any]]:
        status, body = await self.call("GET", "/v1/me/goals", user=user)
        assert status == 200
        return body["goals"]


@pytest.fixture
async def api(tmp_path: Path, database_url: str) -> AsyncGenerator[Api]:
    settings = settings_for(tmp_path, database_url)
    async with serving(create_app(settings), settings) as url, aiohttp.ClientSession(url) as http:
        await agree(http, **headers_for(settings, "alice"))
        yield Api(http, settings)


async def test_a_goal_is_set_listed_replaced_and_removed_and_is_the_users_own(api: Api) -> None:
    goal = str(uuid4())
    path = f"/v1/me/goals/{goal}"
    saved = {"id": goal, "unit": "steps a day", "target_date": None, **STEPS, "target": 8000.0}
    for _ in range(2):
        assert await api.call("PUT", path, STEPS) == (200, saved)
    [listed] = await api.goals()
    assert listed.pop("updated_at")
    assert listed == saved | {"set_by": "user"}
    assert await api.goals("bob") == []
    status, problem = await api.call("PUT", path, STEPS | {"target": 9000}, user="bob")
    assert (status, problem["code"]) == (403, "consent_required"), "a goal tells of health"
    await api.agree("bob")
    assert (await api.call("PUT", path, STEPS | {"target": 9000}, user="bob"))[0] == 200
    assert (await api.call("DELETE", path, user="bob"))[0] == 204
    other = str(uuid4())
    assert (await api.call("PUT", f"/v1/me/goals/{other}", STEPS | {"target": 9000}))[0] == 200
    assert [(each["id"], each["target"]) for each in await api.goals()] == [(other, 9000)]
    status, problem = await api.call(
        "PUT", f"/v1/me/goals/{other}", {"kind": "workouts_per_week", "target": 3}
    )
    assert (status, problem["code"]) == (409, "conflict")
    for _ in range(2):
        assert (await api.call("DELETE", f"/v1/me/goals/{other}"))[0] == 204
    assert await api.goals() == []


async def test_what_the_app_saves_is_held_to_the_same_bounds(api: Api) -> None:
    path = f"/v1/me/goals/{uuid4()}"
    await api.call("PUT", "/v1/me/profile", {"birth_year": 1985})
    now = dt.datetime.now(dt.UTC)
    stamp = now.isoformat()
    weighed = {"samples": [quantity("body_mass", stamp, stamp, 80, SCALE)]}
    assert (await api.call("PUT", "/v1/health/samples", weighed))[0] == 200
    soon, late = (str(now.date() + dt.timedelta(days=days)) for days in (14, 140))
    weight = {"kind": "weight", "target": 75}
    refused = [
        ({"kind": "calories_per_day", "target": 900}, "$.target", "1500 kcal"),
        (weight, "$.target_date", "is missing"),
        (weight | {"target_date": soon}, "$.target_date", "0.8 kg a week"),
        ({"kind": "weight", "target": 30, "target_date": late}, "$.target", "45 kg"),
        ({"kind": "steps_per_day", "target": 90000}, "$.target", "30000"),
        ({"kind": "steps_per_day", "target": 0}, "$.target", ""),
        (STEPS | {"title": "a\u0000b"}, "$.title", ""),
        ({"kind": "fasting_hours", "target": 20}, "$.kind", ""),
    ]
    for body, field, reason in refused:
        status, problem = await api.call("PUT", path, body)
        assert (status, [error["field"] for error in problem["errors"]]) == (422, [field]), body
        assert reason in problem["errors"][0]["reason"]
    assert await api.goals() == []
    assert (await api.call("PUT", path, weight | {"target_date": late}))[0] == 200
    await api.call("PUT", "/v1/me/profile", {"birth_year": 1985, "eating_disorder": True})
    assert await api.goals() == []
    status, problem = await api.call("PUT", path, weight | {"target_date": late})
    assert (status, problem["errors"][0]["field"]) == (422, "$.kind")


async def test_who_is_too_young_or_may_be_gets_no_turn(tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tmp_path, database_url, REQUIRE_BIRTH_YEAR="yes")
    async with serving(create_app(settings), settings) as url, aiohttp.ClientSession(url) as http:
        api = Api(http, settings)
        await agree(http, **headers_for(settings, "alice"))
        session = f"/v1/sessions/{uuid4()}"
        assert (await api.call("PUT", session, {"agent": "coach"}))[0] == 201
        this_year = dt.datetime.now(dt.UTC).year
        young = {"birth_year": this_year - 16}, "too_young"
        for profile, code in ((None, "age_required"), young, ({"birth_year": None}, "age_required")):
            if profile is not None:
                await api.call("PUT", "/v1/me/profile", profile)
            status, problem = await api.call("PUT", f"{session}/turns/{uuid4()}", {"content": "hi"})
            assert (status, problem["code"]) == (403, code)
            run = {"threadId": session[-36:], "runId": str(uuid4()), "tools": [], "context": [], "state": {}}
            asked = {**run, "forwardedProps": {}, "messages": [{"id": "1", "role": "user", "content": "hi"}]}
            status, problem = await api.call("POST", "/v1/agui/coach", asked)
            assert (status, problem["code"]) == (403, code)
        # At once, though the server remembers profiles for a while.
        await api.call("PUT", "/v1/me/profile", {"birth_year": this_year - 17})
        status, _ = await api.call("PUT", f"{session}/turns/{uuid4()}", {"content": "hi"})
        assert status == 202
        assert user_id("alice")
