"""The stand-in for Supabase Auth as a process, for tests that need an issuer over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import aiohttp


class Issuer:
    """A running issuer."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._key = key

    async def token(self, user: str) -> str:
        """Sign a new user up; return the access token."""
        credentials = {"email": f"{user}@example.com", "password": "tests only"}
        return (await self.ask("POST", "/auth/v1/signup", credentials))["access_token"]

    async def control(self, name: str, **asked: Any) -> Any:
        """Change something: rotate, outage, clock."""
        return await self.ask("POST", f"/_emulator/{name}", asked)

    async def asked(self) -> int:
        """Return how often the keys were asked for."""
        seen = (await self.ask("GET", "/_emulator/requests"))["requests"]
        return sum(each["path"].endswith("jwks.json") for each in seen)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request; return what it answers."""
        async with (
            aiohttp.ClientSession(headers={"apikey": self._key}) as session,
            session.request(method, self.url + path, json=body) as response,
        ):
            assert response.status < 300, await response.text()
            text = await response.read()
            return json.loads(text) if text else None


@contextmanager
def issuer(*options: str) -> Generator[Issuer]:
    """Run the emulator until the block ends."""
    command = [sys.executable, "-m", "supabase_emulator", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            yield Issuer(said["url"], said["publishable_key"])
        finally:
            process.terminate()
            process.wait(timeout=10)
