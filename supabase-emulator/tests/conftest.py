"""An emulator on a free port for every test, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from supabase_emulator.project import PROJECT, Project
from supabase_emulator.server import create_app
from supabase_emulator.settings import Settings

PASSWORD = "correct horse"


class Answer(NamedTuple):
    """Status, decoded body, headers."""

    status: int
    body: Any
    headers: dict[str, str]


class Emulator:
    """A client of one running emulator."""

    def __init__(self, project: Project, session: aiohttp.ClientSession) -> None:
        self.project = project
        self.url = project.url
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        json: object = None,
        *,
        key: str | None = "publishable",
        token: str | None = None,
        **headers: str,
    ) -> Answer:
        """Send a request with an API key of a kind (or None) and a bearer token."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["apikey"] = self.key(key)
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        async with self._session.request(method, self.url + path, json=json, headers=sent) as response:
            text = await response.read()
            body = None
            if text and response.content_type == "application/json":
                body = await response.json()
            return Answer(response.status, body, dict(response.headers))

    def key(self, kind: str) -> str:
        """Return the project's key of a kind, or the text itself."""
        kept = self.project.store.kept
        known = {"publishable": kept.publishable_key, "secret": kept.secret_key, **self.project.legacy}
        return known.get(kind, kind)

    async def sign_up(self, email: str = "a@example.com") -> Any:
        """Make an account; return what signing up answers."""
        answer = await self.call("POST", "/auth/v1/signup", {"email": email, "password": PASSWORD})
        assert answer.status == 200, answer
        return answer.body


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def emulator(settings: Settings) -> AsyncGenerator[Emulator]:
    app = create_app(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    app[PROJECT].url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        yield Emulator(app[PROJECT], session)
    await runner.cleanup()
