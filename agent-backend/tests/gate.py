"""Gates of the model's emulator: what a test does in the middle of an answer, it does however busy it is."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import aiohttp


class Gate:
    """A gate of its own: `[[emulator: {gate} ...]]` lets an answer wait at it; `after` so many deltas."""

    def __init__(self, emulator_url: str, after: int = 0) -> None:
        self._name = uuid4().hex
        self._url = f"{emulator_url}/_emulator/gates/{self._name}"
        self._after = after

    def __str__(self) -> str:
        return f"gate={self._name} gate_after={self._after}"

    async def reached(self) -> None:
        """Return when an answer waits at it."""
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while not (await self._ask(http, "GET"))["waiting"]:
                await asyncio.sleep(0.002)

    async def open(self) -> None:
        """Let whoever waits go on, and whoever comes later pass."""
        async with aiohttp.ClientSession() as http:
            await self._ask(http, "POST")

    async def _ask(self, http: aiohttp.ClientSession, method: str) -> dict[str, int]:
        async with http.request(method, self._url, raise_for_status=True) as response:
            return await response.json()
