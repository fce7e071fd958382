from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_backend.app import create_app

from ..consenting import agree
from .serving import headers_for, serving, settings_for

PROTECTED = {"eating_disorder": False, "height_cm": None}
BERLIN = {"time_zone": "Europe/Berlin", "locale": "de-DE", "birth_year": 1985} | PROTECTED
DEFAULTS = {"time_zone": "UTC", "locale": "en", "birth_year": None} | PROTECTED


@pytest.fixture
async def http(tmp_path: Path, database_url: str) -> AsyncGenerator[aiohttp.ClientSession]:
    settings = settings_for(tmp_path, database_url)
    async with (
        serving(create_app(settings), settings) as url,
        aiohttp.ClientSession(url, headers=headers_for(settings)) as session,
    ):
        yield session


async def put(http: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
    async with http.put("/v1/me/profile", json=body) as response:
        return response.status, await response.json(content_type=None)


async def read(http: aiohttp.ClientSession) -> Any:
    async with http.get("/v1/me/profile") as response:
        assert response.status == 200
        return await response.json()


async def test_the_profile_is_what_was_put_last(http: aiohttp.ClientSession) -> None:
    assert await read(http) == DEFAULTS
    assert await put(http, BERLIN) == (200, BERLIN)
    assert await read(http) == BERLIN
    assert await put(http, {"time_zone": "Asia/Tokyo"}) == (200, DEFAULTS | {"time_zone": "Asia/Tokyo"})
    assert await read(http) == DEFAULTS | {"time_zone": "Asia/Tokyo"}


async def test_what_protects_stays_when_an_app_does_not_know_of_it(http: aiohttp.ClientSession) -> None:
    protected = BERLIN | {"eating_disorder": True, "height_cm": 172.5}
    status, problem = await put(http, protected)
    assert (status, problem["code"]) == (403, "consent_required"), "they tell of health"
    assert await read(http) == DEFAULTS
    await agree(http)
    assert await put(http, protected) == (200, protected)
    assert await put(http, {"time_zone": "UTC"}) == (
        200,
        DEFAULTS | {"eating_disorder": True, "height_cm": 172.5},
    )
    assert await put(http, {"height_cm": None}) == (200, DEFAULTS | {"eating_disorder": True})
    assert await put(http, {"eating_disorder": False}) == (200, DEFAULTS)


async def test_what_is_wrong_is_named_and_nothing_changes(http: aiohttp.ClientSession) -> None:
    await put(http, BERLIN)
    wrong: list[tuple[str, Any]] = [
        ("time_zone", "Mars/Olympus"),
        ("time_zone", ""),
        ("locale", "de_DE"),
        ("locale", "x" * 36),
        ("birth_year", 1899),
        ("birth_year", 2101),
        ("birth_year", 1985.5),
        ("eating_disorder", None),
        ("height_cm", 99),
        ("surprise", 1),
    ]
    for field, value in wrong:
        status, problem = await put(http, BERLIN | {field: value})
        assert (status, [error["field"] for error in problem["errors"]]) == (422, [f"$.{field}"])
    assert await read(http) == BERLIN
