from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from agent_backend import app as app_module
from agent_backend.app import create_app
from agent_backend.errors import DeploymentMismatch, MigrationError, OperatorError
from agent_backend.listening import listen
from agent_backend.server import Server, config
from agent_backend.settings import Settings

from .db.pooler import certificate, pooling
from .ports import free_port
from .web.serving import settings_for

PROBE = """
import json, sys
from agent_backend import cli, server

class Probe(server.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(json.dumps(sorted(sys.modules)))
        self.should_exit = True

server.Server = Probe
sys.exit(cli.main(["serve"]))
"""

NOT_AT_BOOT = {
    "aiohttp",
    "anthropic",
    "cryptography",
    "email.mime",
    "h11",
    "http.server",
    "httpx",
    "jwt",
    "prometheus_client",
    "pydantic",
    "requests",
    "rich",
    "sentry_sdk",
    "sqlite3",
    "typer",
    "unittest",
    "urllib3",
    "websockets.asyncio",
    "websockets.legacy",
    "yaml",
}


@pytest.fixture
def env(tmp_path: Path, database_url: str) -> dict[str, str]:
    settings = settings_for(tmp_path, database_url)
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "HOME", "LANG", "PYTHONPATH"}
        },
        "DATABASE_URL": database_url,
        "AGENTS_DIR": str(settings.agents_dir),
        "DEV_KEY_DIR": str(settings.dev_key_dir),
        "METRICS_PORT": "0",
        "PORT": str(free_port()),
    }


@pytest.mark.parametrize("more", [{}, {"SENTRY_DSN": "http://0123abcd@127.0.0.1:1/7"}])
def test_the_boot_loads_nothing_the_first_request_does_not_need(
    env: dict[str, str], more: dict[str, str]
) -> None:
    env = {**env, **more}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert {"agent_backend.app", "asyncpg", "uvloop", "httptools"} <= loaded
    assert not NOT_AT_BOOT & loaded
    assert len(loaded) < 490, "each module costs the boot a millisecond"


async def test_a_request_that_comes_while_we_boot_is_answered_when_we_are_ready(
    tmp_path: Path, database_url: str
) -> None:
    settings = settings_for(tmp_path, database_url)
    server = Server(config(create_app(settings), settings))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    listening = listen("127.0.0.1", 0, "PORT")
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await server.startup([listening])
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await server.shutdown([listening])


async def test_sigterm_drains_and_ends_with_0(env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_backend", "serve"), env=env, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        ready = json.loads(await process.stderr.readline())
        assert ready["action"] == "ready"
        reader, writer = await asyncio.open_connection("127.0.0.1", int(env["PORT"]))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        _, written = await process.communicate()
        writer.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert "draining" in [json.loads(line)["action"] for line in written.splitlines()]


async def test_a_server_that_cannot_work_says_why_in_two_lines(env: dict[str, str]) -> None:
    owner = await asyncpg.connect(env["DATABASE_URL"])
    await owner.execute("UPDATE myhealth.deployment SET environment = 'production'")
    await owner.close()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_backend", "serve"), env=env, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    problem, hint = err.decode().splitlines()
    assert problem.startswith("agent-backend: the database belongs to myhealth-agents in production")
    assert "DATABASE_URL" in hint


async def refused(settings: Settings) -> OperatorError:
    told: list[OperatorError] = []
    app = create_app(settings, told.append)
    with pytest.raises(OperatorError) as refusal:
        async with app.lifespan_context(None):
            pass
    assert told == [refusal.value]
    return refusal.value


async def test_the_boot_refuses_a_database_without_our_schema(tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tmp_path, database_url)
    owner = await asyncpg.connect(database_url)
    await owner.execute("DELETE FROM myhealth.migrations WHERE name LIKE '0001%'")
    first = await refused(settings)
    await owner.execute("DROP SCHEMA myhealth CASCADE")
    second = await refused(settings)
    await owner.close()
    for error in (first, second):
        assert isinstance(error, MigrationError)
        assert "agent-backend migrate" in error.hint
    assert "0001_base" in first.problem


async def test_the_boot_refuses_another_deployments_database(tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tmp_path, database_url, ENVIRONMENT="development", APP_NAME="other")
    assert isinstance(await refused(settings), DeploymentMismatch)


async def test_the_boot_names_a_bad_agent_file(tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tmp_path, database_url)
    assert settings.agents_dir is not None
    (settings.agents_dir / "coach.md").write_text("no front matter")
    error = await refused(settings)
    assert "coach.md:1:" in error.problem


async def test_the_boot_waits_for_a_database_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_CONNECT_SECONDS", 0.2)
    error = await refused(settings_for(tmp_path, "postgresql://user:hunter2@127.0.0.1:1/nothing"))
    assert "does not answer" in error.problem
    assert "hunter2" not in error.problem + error.hint


async def test_the_boot_trusts_no_database_without_its_certificate(tmp_path: Path, database_url: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    root, _ = certificate(ours, "localhost")
    async with pooling(database_url, certificate(theirs, "localhost")) as pooler:
        url = f"postgresql://user.ref:hunter2@localhost:{pooler.port}/x?sslmode=verify-full"
        # No root at all, where asyncpg looks for one in the home folder; and a root that has not signed this.
        for each in (url, f"{url}&sslrootcert={root}"):
            error = await refused(settings_for(tmp_path, each))
            assert "does not show a certificate that is trusted" in error.problem
            assert "hunter2" not in error.problem + error.hint
        error = await refused(settings_for(tmp_path, f"{url}&sslrootcert={tmp_path / 'missing'}"))
        assert f"cannot be read: {tmp_path / 'missing'} (No such file" in error.problem
        assert pooler.startups == []


async def test_the_boot_refuses_a_wrong_database_name_at_once(tmp_path: Path, database_url: str) -> None:
    url = database_url.replace("/test_", "/missing_")
    error = await refused(settings_for(tmp_path, url))
    assert "refuses the connection" in error.problem


async def test_the_boot_says_which_role_a_login_is_missing(tmp_path: Path, database_url: str) -> None:
    login = f"login_{uuid4().hex[:12]}"
    owner = await asyncpg.connect(database_url)
    await owner.execute(f"CREATE ROLE {login} LOGIN")
    try:
        url = urlunsplit(urlsplit(database_url)._replace(netloc=f"{login}@"))
        error = await refused(settings_for(tmp_path, url))
    finally:
        await owner.execute(f"DROP ROLE {login}")
        await owner.close()
    assert "does not let this login work as agent_backend (InsufficientPrivilegeError)" in error.problem
    assert error.hint.startswith("GRANT agent_backend")
