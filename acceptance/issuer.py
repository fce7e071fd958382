"""The stand-in for Supabase Auth as a process, and what tests ask of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

_PASSWORD = "acceptance only"


class Issuer(NamedTuple):
    """A running issuer and its API keys."""

    url: str
    publishable_key: str
    secret_key: str
    anon_key: str
    service_role_key: str

    @property
    def env(self) -> dict[str, str]:
        """What a backend is told of it."""
        return {"SUPABASE_URL": self.url, "SUPABASE_SERVICE_KEY": self.secret_key}

    async def sign_in(self, user: str) -> dict[str, Any]:
        """Return a new session of a user, who is made at the first time."""
        credentials = {"email": f"{user}@example.com", "password": _PASSWORD}
        status, answer = await self.ask("POST", "/auth/v1/token?grant_type=password", credentials)
        if status == 400:
            status, answer = await self.ask("POST", "/auth/v1/signup", credentials)
        assert status == 200, answer
        return answer

    async def token(self, user: str) -> str:
        """Return a new access token."""
        return (await self.sign_in(user))["access_token"]

    async def headers(self, user: str) -> dict[str, str]:
        """Return the Authorization header of a new session."""
        return {"Authorization": f"Bearer {await self.token(user)}"}

    async def ends_in(self, seconds: float) -> None:
        """Let tokens from now on end in so long, for a backend that forgives ten seconds; 3600: as ever."""
        life = 3600 if seconds >= 3600 else 60
        moved = {"token_seconds": life, "advance_s": 0.0}
        _, now = await self.ask("POST", "/_emulator/clock", moved)
        # The emulator's clock may have been moved before: what counts is where it stands now.
        behind = 0.0 if seconds >= 3600 else life + 10 - seconds
        moved["advance_s"] = -behind - (now["now"] - now["real"])
        await self.ask("POST", "/_emulator/clock", moved)

    async def asked_for_keys(self) -> int:
        """Return how often the JWKS was asked for."""
        _, answer = await self.ask("GET", "/_emulator/requests")
        return sum(each["path"].endswith("jwks.json") for each in answer["requests"])

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request with the publishable key."""
        headers = {"apikey": self.publishable_key}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self.url + path, json=body) as response,
        ):
            text = await response.read()
            return response.status, json.loads(text) if text else None


@contextmanager
def issuer(*options: str, state: Path | None = None) -> Generator[Issuer]:
    """Run the emulator until the block ends."""
    kept = [] if state is None else ["--state", str(state)]
    command = [sys.executable, "-m", "supabase_emulator", "serve", "--port", "0", *kept, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            said.pop("action")
            yield Issuer(**said)
        finally:
            process.terminate()
            process.wait(timeout=10)
