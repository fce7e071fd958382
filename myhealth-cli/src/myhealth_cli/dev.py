"""`myhealth dev`: the whole system on one machine, and a conversation with it.

Postgres, the emulated Messages API (the real one if ANTHROPIC_API_KEY is set) and the backend are children
of this process; a chat is the reason they run, and when it ends, they end.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import os
import shutil
import socket
import sys
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
from rich.console import Console

from myhealth_cli.apple_health.truth import HOME
from myhealth_cli.client import Client, Patience
from myhealth_cli.demo import Demo
from myhealth_cli.errors import MyHealthError
from myhealth_cli.postgres import Postgres
from myhealth_cli.processes import AlreadyRunningError, Child, ChildFailedError, Family
from myhealth_cli.progress import Steps
from myhealth_cli.signals import Interrupts
from myhealth_cli.tokens import DevelopmentToken, backend_command, minimal_env

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT: Final = 3001
_READY_S: Final = 60.0
_FRESH: Final = "make run ARGS=--fresh (myhealth dev --fresh) begins with an empty database"
_RESTARTS: Final = 5
_RESTART_WINDOW_S: Final = 60.0
_PASSED_ON: Final = ("LOG_LEVEL", "AGENTS_DIR", "LEASE_SECONDS", "GROUP_COMMIT_MS")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `myhealth dev` was asked for.

    `folder` holds logs, keys' neighbour and data; `chat`: talk, or only serve until a signal.
    """

    port: int = DEFAULT_PORT
    folder: Path = Path(".local/dev")
    user: str = "demo"
    fresh: bool = False
    chat: bool = True
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def state(self) -> Path:
        """The state folder of this port: two stacks on two ports share nothing but the key."""
        return (self.folder / str(self.port)).resolve()

    @property
    def url(self) -> str:
        """Where the backend will be."""
        return f"http://localhost:{self.port}"


class PortInUseError(MyHealthError):
    """Somebody else listens on the port."""

    def __init__(self, port: int, by: str) -> None:
        other = port + 1 if port < 65535 else port - 1
        super().__init__(
            f"port {port} is in use{by}",
            hint=f"stop it, or choose another port: make run PORT={other} (myhealth dev --port {other})",
        )


def run(options: Options) -> int:
    """Run the stack until its conversation ends or a signal comes; return the exit code.

    Raises MyHealthError when something cannot be started or the conversation failed.
    """
    return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    interrupts = Interrupts()
    with interrupts.installed():
        try:
            await _Stack(options, interrupts).run()
        except asyncio.CancelledError:
            if interrupts.received is None:
                raise
            return 128 + interrupts.received
    return 0


class _Stack:
    """One run: what is started, in order."""

    def __init__(self, options: Options, interrupts: Interrupts) -> None:
        self._options = options
        self._interrupts = interrupts
        self._console = Console(stderr=not options.chat)
        self._steps = Steps(self._console)
        self._tokens = DevelopmentToken(options.user)
        self._backend_env: dict[str, str] = {}

    async def run(self) -> None:
        options = self._options
        options.state.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            try:
                family = await stack.enter_async_context(Family(options.state))
            except AlreadyRunningError as error:
                raise PortInUseError(
                    options.port, f" by another `myhealth dev` (process {error.pid})"
                ) from None
            check_port(options.port)
            demo = self._demo(stack)
            backend = await self._start(family)
            watching = asyncio.create_task(self._keep_running(family, backend))
            stack.callback(watching.cancel)
            await _first(asyncio.create_task(self._talk(demo)), watching)
            self._console.print("[dim]stopping ...[/]")

    def _demo(self, stack: AsyncExitStack) -> Demo:
        state = self._options.state
        if self._options.fresh:
            (state / "demo.json").unlink(missing_ok=True)
        for left in state.glob("demo-*"):
            shutil.rmtree(left, ignore_errors=True)
        demo = Demo(state, dt.datetime.now(ZoneInfo(HOME)).date())
        stack.push_async_callback(demo.clean)
        demo.prepare()
        return demo

    # --- servers ---

    async def _start(self, family: Family) -> Child:
        env = self._options.env
        real = bool(env.get("ANTHROPIC_API_KEY"))
        emulator = None if real else await self._start_emulator(family)
        database_url = env.get("DATABASE_URL") or await self._start_postgres(family)
        model = (
            _given(env, "ANTHROPIC_BASE_URL")
            if emulator is None
            else {"ANTHROPIC_BASE_URL": await _address(emulator)}
        )
        model["ANTHROPIC_API_KEY"] = env.get("ANTHROPIC_API_KEY") or "sk-emulated"
        self._backend_env = {
            **minimal_env(keep=(*_PASSED_ON, "DEV_KEY_DIR")),
            **model,
            "DATABASE_URL": database_url,
            "ENVIRONMENT": "development",
            "MACHINE_ID": f"dev-{self._options.port}",
            "PORT": str(self._options.port),
            "METRICS_PORT": env.get("METRICS_PORT") or "0",
        }
        with self._steps.step("Backend"):
            # The key must be there before the server reads it.
            await asyncio.gather(self._migrate(), self._tokens.token())
            backend = await self._start_backend(family)
        where = (
            "Claude, billed to your ANTHROPIC_API_KEY" if real else "an emulator of Claude's API, no AI in it"
        )
        self._console.print(f"  {self._options.url} · model: {where}", style="dim", highlight=False)
        return backend

    async def _start_emulator(self, family: Family) -> Child:
        command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0"]
        return await family.start("anthropic-emulator", command, minimal_env(), speaks=True)

    async def _start_postgres(self, family: Family) -> str:
        postgres = Postgres(self._options.state)
        if self._options.fresh:
            postgres.erase()
        with self._steps.step("Postgres"):
            return await postgres.start(family)

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
                hint="" if self._options.env.get("DATABASE_URL") else _FRESH,
            )

    async def _start_backend(self, family: Family) -> Child:
        """Start the backend and wait until it is ready."""
        child = await family.start("agent-backend", backend_command("serve"), self._backend_env)
        deadline = time.monotonic() + _READY_S
        async with aiohttp.ClientSession() as http:
            while not await _is_ready(http, f"http://127.0.0.1:{self._options.port}/readyz"):
                if child.process.returncode is not None:
                    raise child.failure()
                if time.monotonic() > deadline:
                    raise ChildFailedError("agent-backend was never ready", hint=f"its log: {child.log}")
                await asyncio.sleep(0.03)
        return child

    async def _keep_running(self, family: Family, backend: Child) -> None:
        """Start the backend again when it ends, as Fly would. Raises ChildFailedError if it keeps ending."""
        ends: deque[float] = deque(maxlen=_RESTARTS)
        while True:
            await backend.process.wait()
            family.forget(backend)
            ends.append(time.monotonic())
            if len(ends) == _RESTARTS and ends[-1] - ends[0] < _RESTART_WINDOW_S:
                raise backend.failure()
            backend = await self._start_backend(family)

    # --- what they run for ---

    async def _talk(self, demo: Demo) -> None:
        async with Client(self._options.url, self._tokens, Patience(total_s=60)) as client:
            if await demo.missing(client):
                token = await self._tokens.token()
                with self._steps.bar(f"Demo data: {demo.span.days} days of Apple Health") as update:
                    await demo.load(client, token, update)
            if not self._options.chat:
                self._console.print("Ready. Ctrl-C stops everything.")
                await asyncio.Event().wait()
            elif sys.stdin.isatty() and sys.stdout.isatty():
                from myhealth_cli.chat import chat  # noqa: PLC0415 - brings the terminal's libraries

                await chat(client, self._interrupts)
            else:
                from myhealth_cli.script import play  # noqa: PLC0415 - only without a terminal

                await play(client, sys.stdout)


async def _first(*tasks: asyncio.Task[None]) -> None:
    """Wait until one task ends, end the others, and raise what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _given(env: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: env[name]} if env.get(name) else {}


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
