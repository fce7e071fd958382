"""Gates of the model's emulator: what a test does in the middle of an answer, it does however busy it is."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import aiohttp

from .stack import Site


class Gate:
    """A gate of its own: an answer with its `keys` waits at it, after so many deltas, until it is opened."""

    def __init__(self, site: Site, after: int = 0) -> None:
        name = uuid4().hex
        self.keys: dict[str, Any] = {"gate": name, "gate_after": after}
        """For `say`."""
        self._url = f"{site.emulator_url}/_emulator/gates/{name}"

    async def open(self) -> None:
        """Let whoever waits go on, and whoever comes later pass."""
        async with aiohttp.ClientSession() as http:
            await http.post(self._url, raise_for_status=True)
