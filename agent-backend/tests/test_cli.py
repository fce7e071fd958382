from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from agent_backend.cli import main
from agent_backend.db.pool import Database

URL = "postgresql://user:hunter2@127.0.0.1:1/nothing"


def failed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return problem and hint, each a line of its own."""
    captured = capsys.readouterr()
    assert captured.out == ""
    problem, hint = captured.err.splitlines()
    assert problem.startswith("agent-backend: ")
    assert hint.startswith("  hint: ")
    assert "hunter2" not in captured.err
    return problem, hint


def test_check_config_shows_every_setting_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"], {"DATABASE_URL": URL, "ANTHROPIC_API_KEY": "sk-hunter2"}) == 0
    shown = capsys.readouterr().out
    assert "PORT                  3001\n" in shown
    assert "ANTHROPIC_API_KEY     Secret(***)\n" in shown
    assert "hunter2" not in shown


def test_check_config_names_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"], {"PORT": "x", "POOL_MIN": "0"}) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[::2]] == ["PORT", "POOL_MIN", "DATABASE_URL"]


def test_check_config_as_json_has_everything_in_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check-config", "--json"], {"PORT": "x", "SUPABASE_SERVICE_KEY": "sb_publishable_hunter2"}) == 2
    )
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["ok"] is False
    named = [each["problem"].split()[0] for each in told["errors"]]
    assert named == ["PORT", "DATABASE_URL", "SUPABASE_SERVICE_KEY"]
    assert all(each["hint"] for each in told["errors"])
    assert "hunter2" not in captured.out
    assert main(["check-config", "--json"], {"DATABASE_URL": URL}) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["errors"], told["settings"]["PORT"]) == (True, [], 3001)


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_missing_variable_is_two_lines_and_exit_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command], {}) == 2
    problem, hint = failed(capsys)
    assert problem == "agent-backend: DATABASE_URL is missing"
    assert "set DATABASE_URL" in hint


def test_a_port_in_use_is_named_with_the_way_to_choose_another(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve"], {"DATABASE_URL": URL, "PORT": str(port)}) == 2
    problem, hint = failed(capsys)
    assert problem == f"agent-backend: port {port} is in use"
    assert "PORT=" in hint


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["token", "--user", "alice"], {"ENVIRONMENT": "staging", "APP_NAME": "x"}),
        (["token", "--user", "alice", "--ttl", "forever"], {}),
        (["token", "--user", "a b"], {}),
    ],
)
def test_token_refuses_what_it_should_not_make(
    arguments: list[str], env: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, {"DEV_KEY_DIR": str(tmp_path), **env}) == 2
    failed(capsys)


def test_token_needs_no_database_and_prints_only_the_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "--user", "alice"], {"DEV_KEY_DIR": str(tmp_path)}) == 0
    captured = capsys.readouterr()
    assert captured.out.count(".") == 2
    assert captured.err == ""


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dance"], {})
    assert ended.value.code == 2
    assert "usage: agent-backend" in capsys.readouterr().err


@pytest.fixture
async def empty_database(database_url: str) -> str:
    owner = await asyncpg.connect(database_url)
    await owner.execute("DROP SCHEMA myhealth CASCADE")
    await owner.close()
    return database_url


def test_migrate_names_what_it_applied_and_is_safe_to_repeat(
    empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"DATABASE_URL": empty_database}
    assert main(["migrate", "--release", "abc"], env) == 0
    assert "applied 0001_base.pre.sql\n" in capsys.readouterr().out
    assert main(["migrate"], env) == 0
    assert capsys.readouterr().out == "the schema is up to date\n"


@pytest.fixture
async def login(empty_database: str) -> AsyncGenerator[str]:
    """Yield the URL of a login that may do nothing but be the server's role (docs/security.md)."""
    name = f"login_{uuid4().hex[:12]}"
    owner = await asyncpg.connect(empty_database)
    await owner.execute(f"CREATE ROLE {name} LOGIN NOINHERIT")
    await owner.execute(f"GRANT agent_backend TO {name}")
    yield urlunsplit(urlsplit(empty_database)._replace(netloc=f"{name}@"))
    await owner.execute(f"DROP ROLE {name}")
    await owner.close()


def test_the_schemas_owner_migrates_and_the_server_is_somebody_else(
    empty_database: str, login: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"DATABASE_URL": login}
    assert main(["migrate"], env) == 2
    problem, hint = failed(capsys)
    assert "InsufficientPrivilegeError" in problem
    assert "MIGRATE_DATABASE_URL" in hint
    assert main(["migrate"], {**env, "MIGRATE_DATABASE_URL": empty_database}) == 0
    assert "applied 0001_base.pre.sql\n" in capsys.readouterr().out

    async def serve() -> None:
        database = Database(login, min_size=1, max_size=1, lock_timeout_ms=5000)
        await database.open()
        try:
            assert await database.fetchval("SELECT count(*) FROM myhealth.migrations") > 0
            await database.fetch("RESET ROLE")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await database.fetch("CREATE TABLE myhealth.mine ()")
        finally:
            await database.close()

    asyncio.run(serve())


def test_a_database_whose_certificate_nobody_knows_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    owner = "postgresql://user:hunter2@127.0.0.1:1/x?sslmode=verify-full"
    for words in (["migrate"], ["tombstones", "dump"]):
        assert main(words, {"DATABASE_URL": URL, "MIGRATE_DATABASE_URL": owner}) == 2
        problem, hint = failed(capsys)
        assert "does not show a certificate that is trusted" in problem
        assert "the host in MIGRATE_DATABASE_URL" in hint


def test_tombstones_are_the_owners_too(
    empty_database: str, login: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["migrate"], {"DATABASE_URL": empty_database}) == 0
    capsysbinary.readouterr()
    assert main(["tombstones", "dump"], {"DATABASE_URL": login}) == 2
    said = capsysbinary.readouterr().err.decode()
    assert "may not read or write tombstones (InsufficientPrivilegeError)" in said
    assert "MIGRATE_DATABASE_URL" in said
    env = {"DATABASE_URL": login, "MIGRATE_DATABASE_URL": empty_database}
    assert main(["tombstones", "dump"], env) == 0
    assert json.loads(capsysbinary.readouterr().out)["tombstones"] == []


def test_a_wrong_url_of_the_owner_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"], {"DATABASE_URL": URL, "MIGRATE_DATABASE_URL": "mysql://x/y"}) == 2
    assert failed(capsys)[0].startswith("agent-backend: MIGRATE_DATABASE_URL has 11 characters")
    assert main(["migrate"], {"DATABASE_URL": "postgresql://unused/x", "MIGRATE_DATABASE_URL": URL}) == 2
    assert "in MIGRATE_DATABASE_URL" in failed(capsys)[1]


def test_migrate_refuses_another_deployments_database(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate"], {"DATABASE_URL": database_url, "APP_NAME": "other"}) == 2
    assert "belongs to myhealth-agents" in failed(capsys)[0]


def test_migrate_says_when_there_is_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"], {"DATABASE_URL": URL}) == 2
    assert "DATABASE_URL" in failed(capsys)[1]


def test_the_healthcheck_tells_a_server_that_answers_from_one_that_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        port = str(server.server_address[1])
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert main(["healthcheck"], {"PORT": port}) == 0
        thread.join()
    assert main(["healthcheck"], {"PORT": port}) == 1
    assert "no answer on port" in capsys.readouterr().err
    assert main(["healthcheck"], {"PORT": "x"}) == 2
