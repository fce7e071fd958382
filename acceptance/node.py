"""Node and the npm packages of `agui/`, where this machine has them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .client import PATIENCE, Received

FOLDER = Path(__file__).resolve().parent / "agui"
_INSTALL_SECONDS = 90


@cache
def _missing() -> str | None:
    """Return why the AG-UI client cannot run here; None when it can. Installs it once where it is absent."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        return "Node.js is not installed"
    with (FOLDER / "package.json").open("rb") as lock:
        # Test processes side by side install once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (FOLDER / "node_modules/@ag-ui/client/package.json").exists():
            return None
        if npm is None:
            return "npm is not installed, and the AG-UI client is not in acceptance/agui/node_modules"
        command = [npm, "ci", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                command, cwd=FOLDER, capture_output=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return "`npm ci` in acceptance/agui took too long"
        return None if done.returncode == 0 else "`npm ci` in acceptance/agui failed"


def require() -> None:
    """Skip the test, with one clear line, where the AG-UI client cannot run."""
    if (reason := _missing()) is not None:
        pytest.skip(f"AG-UI client: {reason}")


class Running:
    """A run of the script; `event` waits for what it has received so far, `report` for its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def event(self, kind: str) -> None:
        """Wait until the agent has received an event of this type."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := await self._process.stderr.readline():
                if line.decode().strip() == kind:
                    return
        raise AssertionError(f"the agent ended without {kind}")

    async def report(self) -> dict[str, Any]:
        """Wait for the end and return the script's report."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self._process.communicate()
        assert self._process.returncode == 0, err.decode()
        return json.loads(out)


@asynccontextmanager
async def script(request: dict[str, Any]) -> AsyncGenerator[Running]:
    """Start `agui/run.mjs` with a request."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(FOLDER / "run.mjs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def verified(streams: list[list[Received]]) -> list[list[dict[str, Any]]]:
    """Return what the npm client holds after each stream; fails where its schema or verifier objects."""
    request = {"do": "verify", "streams": [[each.event for each in stream] for stream in streams]}
    async with script(request) as running:
        results = (await running.report())["results"]
    assert [result["error"] for result in results] == [None] * len(streams)
    for message in (message for result in results for message in result["messages"]):
        # The client copies what it needs no longer: the metadata of events.
        for part in (message, *message.get("toolCalls", [])):
            part.pop("metadata", None)
    return [result["messages"] for result in results]


async def verified_if_there(streams: list[list[Received]]) -> None:
    """Let the npm client judge streams where it can run; elsewhere our own verifier has done so."""
    if _missing() is None:
        await verified(streams)
