"""Fleets of real processes for tests: what is opened is ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from fly_emulator.log import Log
from fly_emulator.machine_config import Check, Init, MachineConfig, Restart, Service, StopConfig
from fly_emulator.machines.fleet import Fleet, open_fleet
from fly_emulator.machines.machine import Machine
from fly_emulator.machines.settings import MachineSettings

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 20.0
QUICK = MachineSettings(restart_backoff=0.0, reply_grace=0.01, memory_limit=False, cut_connections=False)
WEB = MachineConfig(
    image="registry.fly.io/app:v1",
    init=Init(exec=(sys.executable, "-E", "-s", str(PROGRAMS / "web.py"))),
    services=(Service(internal_port=8080, checks=(Check(path="/health"),)),),
    stop_config=StopConfig(signal="SIGTERM", timeout="5s"),
    metadata={"fly_process_group": "app"},
)


def shell(script: str, **changes: Any) -> MachineConfig:
    """Return a machine that runs a shell script and offers nothing."""
    config = MachineConfig(
        image="sh", init=Init(exec=("/bin/sh", "-c", script)), restart=Restart(policy="no")
    )
    return msgspec.structs.replace(config, **changes)


def web(env: dict[str, str] | None = None, **changes: Any) -> MachineConfig:
    """Return the web server, with variables."""
    return msgspec.structs.replace(WEB, env=env or {}, **changes)


@asynccontextmanager
async def opened(
    directory: Path, settings: MachineSettings = QUICK, *, lines: list[str] | None = None
) -> AsyncGenerator[Fleet]:
    """Open a fleet in a state directory; its machines are killed at the end."""
    log = Log(lines.append) if lines is not None else Log()
    fleet = await open_fleet("app", primary_region="fra", directory=directory, settings=settings, log=log)
    try:
        yield fleet
    finally:
        await fleet.close(kill_timeout=0.0)


async def until(fleet: Fleet, condition: Callable[[], bool]) -> None:
    """Wait for a change that makes the condition true."""
    async with asyncio.timeout(PATIENCE):
        while True:
            ticket = fleet.changed.ticket
            if condition():
                return
            await ticket.wait()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that only other processes know."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def get(machine: Machine, path: str) -> str:
    """Ask a machine's web server."""
    host, port = machine.address(8080)
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as response:
        return await response.text()


def alive(pid: int) -> bool:
    """Say whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
