"""Runs an app over a real socket, inside the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from starlette.routing import Router

from agent_backend import consents
from agent_backend.auth import Authenticator
from agent_backend.db.pool import Database
from agent_backend.devtoken import issue
from agent_backend.listening import listen
from agent_backend.server import config
from agent_backend.settings import Settings, read
from agent_backend.turns.machine import Machine
from agent_backend.web.operations import Operation, SocketOperation, routes, unknown_path
from agent_backend.web.services import Services

AGENT_FILE = """---
name: coach
description: Talks about health data
engine: messages
model: claude-sonnet-5-5
max_tokens: 1000
thinking: "off"
tools: []
budget:
  max_steps: 3
  usd_per_turn: 0.1
---
You are a coach.
"""


def settings_for(folder: Path, database_url: str = "postgresql://nowhere.invalid/x", **env: str) -> Settings:
    """Return settings whose key and agent files are below `folder`."""
    agents = folder / "agents"
    agents.mkdir(exist_ok=True)
    (agents / "coach.md").write_text(AGENT_FILE, encoding="utf-8")
    base = {
        "DATABASE_URL": database_url,
        "DEV_KEY_DIR": str(folder / "keys"),
        "AGENTS_DIR": str(agents),
        "METRICS_PORT": "0",
    }
    return read({**base, **env})


def headers_for(settings: Settings, user: str = "alice") -> dict[str, str]:
    """Return the Authorization header of a made-up user."""
    return {"Authorization": f"Bearer {issue(settings, user, 600)}"}


def app_of(
    settings: Settings, operations: Sequence[Operation], sockets: Sequence[SocketOperation] = ()
) -> Router:
    """Return an app of these operations alone; its database is never opened, its machine never started."""
    database = Database(settings.database_url.reveal(), min_size=1, max_size=1, lock_timeout_ms=1000)
    catalogue = consents.load()
    services = Services(
        settings=settings,
        database=database,
        machine=Machine(
            database,
            machine_id=settings.machine_id,
            lease_seconds=settings.lease_seconds,
            group_commit_seconds=0.1,
            agents={},
            tools={},
            engines={},
            consents=catalogue,
        ),
        authenticator=Authenticator(
            jwks_url=settings.jwks_url, issuer=settings.auth_issuer, audience=settings.auth_audience
        ),
        agents={},
        consents=catalogue,
    )
    return Router(
        routes(operations, sockets),
        default=unknown_path,
        redirect_slashes=False,
        lifespan=partial(_only, services),
    )


@asynccontextmanager
async def _only(services: Services, _app: object) -> AsyncGenerator[dict[str, Services]]:
    yield {"services": services}


@asynccontextmanager
async def serving(app: Router, settings: Settings) -> AsyncGenerator[str]:
    """Serve until the block ends; yield the base URL. The app has started when the block begins."""
    server = uvicorn.Server(config(app, settings))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    listening = listen("127.0.0.1", 0, "PORT")
    port: int = listening.getsockname()[1]
    await server.startup([listening])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await _stop(server)


async def _stop(server: uvicorn.Server) -> None:
    """Do what `shutdown` does without its pauses: the clients of a test have gone."""
    for each in server.servers:
        each.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
    await server.lifespan.shutdown()
