"""Postgres, the emulated Messages API and the backend: started in order, each with the least it must know."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from myhealth_cli.errors import MyHealthError
from myhealth_cli.postgres import Postgres
from myhealth_cli.processes import Child, ChildFailedError, Family
from myhealth_cli.tokens import backend_command, minimal_env

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_READY_S: Final = 60.0
_RESTARTS: Final = 5
_RESTART_WINDOW_S: Final = 60.0
_PASSED_ON: Final = ("DEV_KEY_DIR", "LOG_LEVEL", "AGENTS_DIR", "LEASE_SECONDS", "GROUP_COMMIT_MS")
_FRESH: Final = "make run ARGS=--fresh (myhealth dev --fresh) begins with an empty database"


class PortInUseError(MyHealthError):
    """Somebody else listens on the port."""

    def __init__(self, port: int, by: str) -> None:
        other = port + 1 if port < 65535 else port - 1
        super().__init__(
            f"port {port} is in use{by}",
            hint=f"stop it, or choose another port: make run PORT={other} (myhealth dev --port {other})",
        )


class Servers:
    """The servers of one stack, in a family. `env` is what the person has set in the shell.

    DATABASE_URL and ANTHROPIC_API_KEY replace the embedded Postgres and the emulator. `emulator_options`
    are options of `anthropic-emulator serve`.
    """

    def __init__(
        self,
        family: Family,
        state: Path,
        port: int,
        env: Mapping[str, str],
        emulator_options: tuple[str, ...] = (),
    ) -> None:
        self.url = f"http://localhost:{port}"
        self.real_model = bool(env.get("ANTHROPIC_API_KEY"))
        self._family = family
        self._state = state
        self._port = port
        self._env = env
        self._emulator_options = emulator_options
        self._backend_env: dict[str, str] = {}
        self._backend: Child | None = None

    @property
    def backend(self) -> Child:
        """The backend that runs."""
        assert self._backend is not None, "started"
        return self._backend

    async def start_stores(self, *, fresh: bool = False) -> None:
        """Start what the backend needs, and bring the schema up to date; `fresh` removes the data first."""
        # The emulator starts while Postgres does.
        emulator = None if self.real_model else await self._start_emulator()
        database_url = self._env.get("DATABASE_URL") or await self._start_postgres(fresh=fresh)
        model = {name: self._env[name] for name in ("ANTHROPIC_BASE_URL",) if self._env.get(name)}
        if emulator is not None:
            model = {"ANTHROPIC_BASE_URL": await _address(emulator)}
        self._backend_env = {
            **minimal_env(keep=_PASSED_ON),
            **model,
            "ANTHROPIC_API_KEY": self._env.get("ANTHROPIC_API_KEY") or "sk-emulated",
            "DATABASE_URL": database_url,
            "ENVIRONMENT": "development",
            "MACHINE_ID": f"dev-{self._port}",
            "PORT": str(self._port),
            "METRICS_PORT": self._env.get("METRICS_PORT") or "0",
        }
        await self._migrate()

    async def _start_emulator(self) -> Child:
        command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0"]
        return await self._family.start(
            "anthropic-emulator", [*command, *self._emulator_options], minimal_env(), speaks=True
        )

    async def _start_postgres(self, *, fresh: bool) -> str:
        postgres = Postgres(self._state)
        if fresh:
            postgres.erase()
        return await postgres.start(self._family)

    async def _migrate(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *backend_command("migrate"),
            env=self._backend_env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        if process.returncode != 0:
            raise ChildFailedError(
                f"the migration failed:\n{out.decode('utf-8', 'replace').strip()}",
                hint="" if self._env.get("DATABASE_URL") else _FRESH,
            )

    async def start_backend(self) -> None:
        """Start the backend and wait until it is ready. Raises ChildFailedError."""
        child = await self._family.start("agent-backend", backend_command("serve"), self._backend_env)
        self._backend = child
        deadline = time.monotonic() + _READY_S
        async with aiohttp.ClientSession() as http:
            while not await _is_ready(http, f"http://127.0.0.1:{self._port}/readyz"):
                if child.process.returncode is not None:
                    raise child.failure()
                if time.monotonic() > deadline:
                    raise ChildFailedError("agent-backend was never ready", hint=f"its log: {child.log}")
                await asyncio.sleep(0.03)

    async def keep_running(self) -> None:
        """Start the backend again whenever it ends, as Fly would. Raises ChildFailedError if that fails."""
        ends: deque[float] = deque(maxlen=_RESTARTS)
        while True:
            ended = self.backend
            await ended.process.wait()
            self._family.forget(ended)
            ends.append(time.monotonic())
            if len(ends) == _RESTARTS and ends[-1] - ends[0] < _RESTART_WINDOW_S:
                raise ended.failure()
            await self.start_backend()


async def _address(emulator: Child) -> str:
    return msgspec.json.decode(await emulator.first_line(), type=dict[str, str])["url"]


async def _is_ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def check_port(port: int) -> None:
    """Raise PortInUseError, with who listens if that can be told, unless the port is free."""
    with socket.socket() as probe:
        # What the backend sets as well; a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(port, _listener(port)) from None
            raise MyHealthError(f"port {port} cannot be opened: {error.strerror}") from error


def _listener(port: int) -> str:
    """Return ` by NAME (process N)`, or nothing where that is not ours to know."""
    import psutil  # noqa: PLC0415 - only to explain

    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f" by {psutil.Process(each.pid).name()} (process {each.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
