"""A message that is refused and shows a red flag: the problem document carries the text that helps."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent_backend.app import create_app
from agent_backend.errors import Forbidden, Unavailable
from agent_backend.telemetry import metrics
from agent_backend.turns.commands import Commands

from ..consenting import agree
from .serving import headers_for, serving, settings_for

FLAGGED = "Ich will nicht mehr leben"


@pytest.fixture
async def http(tmp_path: Path, database_url: str) -> AsyncGenerator[aiohttp.ClientSession]:
    settings = settings_for(tmp_path, database_url)
    async with (
        serving(create_app(settings), settings) as url,
        aiohttp.ClientSession(url, headers=headers_for(settings)) as session,
    ):
        yield session


async def put(http: aiohttp.ClientSession, text: str, **headers: str) -> Any:
    path = f"/v1/sessions/{uuid4()}/turns/{uuid4()}"
    async with http.put(path, json={"content": text}, headers=headers) as response:
        return await response.json(content_type=None)


async def test_a_refused_message_gets_the_text_in_the_users_language(http: aiohttp.ClientSession) -> None:
    profile = {"time_zone": "Europe/Vienna", "locale": "de-AT"}
    async with http.put("/v1/me/profile", json=profile) as response:
        assert response.status == 200
    before = metrics.safety_flags["suicidality"]
    problem = await put(http, FLAGGED)
    assert problem["status"] == 404
    assert problem["safety"]["category"] == "suicidality"
    assert "142" in problem["safety"]["text"]
    assert metrics.safety_flags["suicidality"] == before + 1
    assert "safety" not in await put(http, "Wie viele Schritte?")


@pytest.mark.parametrize(
    ("refusal", "language", "number"),
    [
        (Forbidden("No consent."), "de-DE,de;q=0.9", "findahelpline.com"),
        (Unavailable("The database is not reachable."), "de-CH, en;q=0.8", "143"),
        (Unavailable("The database is not reachable."), "*", "findahelpline.com"),
        (RuntimeError("ours"), "de-DE", "0800 1110111"),
    ],
)
async def test_whatever_the_refusal(
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Exception,
    language: str,
    number: str,
) -> None:
    """Below 500 the profile says which language (here none was put: English), else the request's header."""

    async def refuse(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(Commands, "put_turn", refuse)
    problem = await put(http, FLAGGED, **{"Accept-Language": language})
    assert problem["safety"]["category"] == "suicidality"
    assert number in problem["safety"]["text"]


async def test_over_agui_too(http: aiohttp.ClientSession) -> None:
    await agree(http)
    thread, other = str(uuid4()), {"id": "1", "role": "user", "content": "I have chest pain"}
    async with http.put(f"/v1/sessions/{thread}", json={"agent": "coach"}) as response:
        assert response.status == 201
    # The same run id with another text is a conflict.
    run = str(uuid4())
    body = {"threadId": thread, "runId": run, "messages": [{**other, "content": "I have chest pain now"}]}
    async with http.post("/v1/agui/coach", json=body) as response:
        assert response.status == 200
        assert b"safety.cardiac" in await response.read()
    async with http.post("/v1/agui/coach", json={**body, "messages": [other]}) as response:
        problem = await response.json(content_type=None)
    assert (problem["status"], problem["safety"]["category"]) == (409, "cardiac")
