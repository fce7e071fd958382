"""Postgres, the emulated Messages API, the issuer, the backend: in order, each with the least it must know.

The backend runs behind the local Fly, which lets it fall asleep, wakes it and restarts it after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.errors import MyHealthError
from myhealth_cli.fly import LocalFly
from myhealth_cli.postgres import Postgres
from myhealth_cli.processes import Child, ChildFailedError, Family
from myhealth_cli.tokens import Issuer, backend_command, minimal_env

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from myhealth_cli.machine import Machine

_SETTINGS: Final = {"ENVIRONMENT": "development", "METRICS_PORT": "0", "DRAIN_SECONDS": "2", "SLEEP": "exit"}
"""What differs from fly.toml, unless the shell says otherwise; ENVIRONMENT is never anything else here."""
_PASSED_ON: Final = (
    *("METRICS_PORT", "DRAIN_SECONDS", "SLEEP", "IDLE_SECONDS"),
    *("DEV_KEY_DIR", "LOG_LEVEL", "AGENTS_DIR", "LEASE_SECONDS", "GROUP_COMMIT_MS"),
)
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

    DATABASE_URL and ANTHROPIC_API_KEY replace the embedded Postgres and the emulator.
    """

    def __init__(self, family: Family, state: Path, port: int, env: Mapping[str, str]) -> None:
        self.url = f"http://localhost:{port}"
        self.real_model = bool(env.get("ANTHROPIC_API_KEY"))
        self._family = family
        self._state = state
        self._env = env
        self._fly = LocalFly(family, state, port)
        self._secrets: dict[str, str] = {}
        self.issuer = Issuer("", "")
        """Where tokens come from, once it was started."""

    async def start_stores(self, *, fresh: bool = False) -> None:
        """Start what the backend needs, and bring the schema up to date; `fresh` removes the data first."""
        # The emulators start while Postgres does.
        emulator = None if self.real_model else await self._start_emulator()
        supabase = await self._start_issuer(fresh=fresh)
        database_url = self._env.get("DATABASE_URL") or await self._start_postgres(fresh=fresh)
        model = {name: self._env[name] for name in ("ANTHROPIC_BASE_URL",) if self._env.get(name)}
        if emulator is not None:
            model = {"ANTHROPIC_BASE_URL": await _address(emulator)}
        self._secrets = {
            **model,
            **await self._meet_issuer(supabase),
            "ANTHROPIC_API_KEY": self._env.get("ANTHROPIC_API_KEY") or "sk-emulated",
            "DATABASE_URL": database_url,
        }
        if fresh:
            self._fly.erase()
        await self._migrate()

    async def _start_emulator(self) -> Child:
        command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0"]
        return await self._family.start("anthropic-emulator", command, minimal_env(), speaks=True)

    async def _start_issuer(self, *, fresh: bool) -> Child:
        """Start the stand-in for Supabase Auth; its users are as lasting as the database."""
        state = self._state / "supabase.json"
        if fresh:
            state.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supabase_emulator", "serve", "--port", "0", "--state", str(state)]
        return await self._family.start("supabase-emulator", command, minimal_env(), speaks=True)

    async def _meet_issuer(self, supabase: Child) -> dict[str, str]:
        """Note where it is, for other commands too; return what the backend is told of it."""
        said = msgspec.json.decode(await supabase.first_line(), type=dict[str, str])
        self.issuer = Issuer(said["url"], said["publishable_key"])
        Issuer.file(self._state).write_bytes(msgspec.json.encode(self.issuer))
        return {"SUPABASE_URL": said["url"], "SUPABASE_SERVICE_KEY": said["secret_key"]}

    async def _start_postgres(self, *, fresh: bool) -> str:
        postgres = Postgres(self._state)
        if fresh:
            postgres.erase()
        return await postgres.start(self._family)

    async def _migrate(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *backend_command("migrate"),
            env={**minimal_env(), "ENVIRONMENT": "development", **self._secrets},
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

    async def start_backend(self, idle_seconds: float) -> Machine:
        """Start the backend's machine and return it when it is ready; idle for so long, it sleeps.

        Raises ChildFailedError.
        """
        chosen = {name: self._env[name] for name in _PASSED_ON if self._env.get(name)}
        settings = {"IDLE_SECONDS": f"{idle_seconds:g}", **_SETTINGS, **chosen}
        return await self._fly.start({**minimal_env(), **settings}, self._secrets)

    async def watch(self) -> None:
        """Return never. Raises ChildFailedError when the backend's Fly ends."""
        await self._fly.watch()


async def _address(emulator: Child) -> str:
    return msgspec.json.decode(await emulator.first_line(), type=dict[str, str])["url"]


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
