"""The local Fly (`fly-emulator run`): the backend as a machine behind an edge, from the deployed fly.toml."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.errors import MyHealthError
from myhealth_cli.machine import Address, Machine
from myhealth_cli.processes import ChildFailedError
from myhealth_cli.tokens import backend_command, minimal_env

if TYPE_CHECKING:
    from collections.abc import Mapping

    from myhealth_cli.processes import Child, Family

_READY_S: Final = 60.0
_NAME: Final = "fly-emulator"
_CONFIG: Final = Path(__file__).resolve().parents[3] / "agent-backend" / "fly.toml"
"""In the repository this package is run from."""


class LocalFly:
    """Runs the backend with one machine; a crash is started again by fly.toml's restart policy."""

    def __init__(self, family: Family, state: Path, port: int) -> None:
        self._family = family
        self._folder = state / "fly"
        self._port = port
        self._child: Child | None = None

    def erase(self) -> None:
        """Forget the machine."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def start(self, env: Mapping[str, str], secrets: Mapping[str, str]) -> Machine:
        """Start the machine and return it when it is healthy. `secrets` are never on a command line.

        Raises ChildFailedError.
        """
        if not _CONFIG.exists():
            raise MyHealthError(f"{_CONFIG} is missing", hint="run this in a checkout of the repository")
        # Its machine's log would grow from run to run; the emulator's own begins anew, and holds the same.
        shutil.rmtree(self._folder / "logs", ignore_errors=True)
        began = time.time()
        self._child = await self._family.start(
            _NAME, self._command(env, secrets), {**minimal_env(), **secrets}, speaks=True
        )
        address = msgspec.json.decode(await self._child.first_line(), type=Address)
        machine = Machine(address)
        async with machine:
            await self._until_started(self._child, machine, began)
        return machine

    def _command(self, env: Mapping[str, str], secrets: Mapping[str, str]) -> list[str]:
        options = {
            "--command": shlex.join(backend_command("serve")),
            "--port": str(self._port),
            "--api-port": "0",
            "--machines": "1",
            "--state": str(self._folder),
        }
        given = [f"{name}={value}" for name, value in {**env, **self._family.mark}.items()]
        return [
            *(sys.executable, "-m", "fly_emulator", "run", str(_CONFIG), "--json"),
            *(word for option in options.items() for word in option),
            *(word for each in given for word in ("--env", each)),
            *(word for name in secrets for word in ("--secret", name)),
        ]

    async def _until_started(self, child: Child, machine: Machine, began: float) -> None:
        started = asyncio.create_task(machine.started(began))
        ended = asyncio.create_task(child.process.wait())
        try:
            await asyncio.wait([started, ended], timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise child.failure()
            if not started.done():
                raise ChildFailedError("agent-backend was never ready", hint=f"its log: {child.log}")
            started.result()
        finally:
            for each in (started, ended):
                each.cancel()
            await asyncio.gather(started, ended, return_exceptions=True)

    async def watch(self) -> None:
        """Return never. Raises ChildFailedError when the emulator ends."""
        assert self._child is not None, "started"
        await self._child.process.wait()
        raise self._child.failure()
