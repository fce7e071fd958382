from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from agent_backend.app import create_app
from agent_backend.db.migrate import verify
from agent_backend.settings import Settings
from agent_backend.web import health
from agent_backend.web.services import Services

from .serving import serving, settings_for


@asynccontextmanager
async def running(settings: Settings) -> AsyncGenerator[tuple[aiohttp.ClientSession, Services]]:
    """Run the whole app; yield a client and the app's services."""
    app = create_app(settings)
    inner = app.lifespan_context
    found: list[Services] = []

    @asynccontextmanager
    async def observed(of: object) -> AsyncGenerator[dict[str, Services]]:
        async with inner(of) as state:
            assert state is not None
            found.append(state["services"])
            yield dict(state)

    app.lifespan_context = observed
    async with serving(app, settings) as url, aiohttp.ClientSession(url) as http:
        yield http, found[0]


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return settings_for(tmp_path, database_url, RELEASE="abc123", MACHINE_ID="m1")


async def test_health_needs_no_token_and_says_what_runs(settings: Settings) -> None:
    async with running(settings) as (http, _):
        async with http.get("/livez") as response:
            assert (response.status, await response.json()) == (200, {"status": "alive"})
        async with http.get("/readyz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready"})
        async with http.get("/version") as response:
            version = await response.json()
    assert version["release"] == "abc123"
    assert version["environment"] == "development"
    assert version["machine"] == "m1"
    assert version["started_at"].endswith("Z")


async def not_ready(http: aiohttp.ClientSession) -> str:
    async with http.get("/readyz") as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        (error,) = json.loads(await response.read())["errors"]
        return error["field"]


async def test_readiness_names_what_is_missing_and_liveness_does_not_care(settings: Settings) -> None:
    async with running(settings) as (http, services):
        services.draining = True
        assert await not_ready(http) == "draining"
        services.draining = False

        owner = await asyncpg.connect(settings.database_url.reveal())
        await owner.execute("UPDATE myhealth.deployment SET environment = 'staging'")
        assert await not_ready(http) == "deployment"
        await owner.execute("UPDATE myhealth.deployment SET environment = 'development'")

        await owner.execute("UPDATE myhealth.migrations SET applied_at = NULL WHERE name LIKE '0001%'")
        assert await not_ready(http) == "schema"
        await owner.execute("UPDATE myhealth.migrations SET applied_at = now()")

        async with http.get("/readyz") as response:
            assert response.status == 200
        services.ready_at = float("-inf")  # a good answer is kept for a moment

        await owner.close()
        await services.database.close()
        services.database = type(services.database)(
            "postgresql://127.0.0.1:1/nothing", min_size=0, max_size=1, lock_timeout_ms=1000
        )
        await services.database.open()
        assert await not_ready(http) == "database"
        async with http.get("/livez") as response:
            assert response.status == 200


async def test_a_flood_of_readiness_checks_is_no_flood_of_queries(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = 0

    async def counted(connection: Any, environment: str, app_name: str) -> None:
        nonlocal queries
        queries += 1
        await verify(connection, environment, app_name)

    monkeypatch.setattr(health, "verify", counted)
    monkeypatch.setattr(health, "_FRESH_SECONDS", 60)
    async with running(settings) as (http, services):

        async def ask() -> int:
            async with http.get("/readyz") as response:
                return response.status

        assert set(await asyncio.gather(*(ask() for _ in range(50)))) == {200}
        assert queries == 1
        services.dozing = True
        assert await ask() == 503  # what we know ourselves is never old
