"""`fly-emulator run` as an operator has it: a process, its exit codes, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from .fleets import PROGRAMS, alive, eventually

WEB = shlex.join((sys.executable, "-E", "-s", str(PROGRAMS / "web.py")))
TOML = """\
app = "small"
primary_region = "fra"
kill_signal = "SIGTERM"

[env]
PORT = "8080"
GREETING = "from the file"

[http_service]
internal_port = 8080
force_https = true
auto_stop_machines = "off"
auto_start_machines = true

[[http_service.checks]]
path = "/health"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "fly.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def command(toml: Path, *options: str) -> list[str]:
    ports = ("--port", "0", "--api-port", "0", "--state", str(toml.parent / "state"))
    return [sys.executable, "-m", "fly_emulator", "run", str(toml), *ports, *options]


@contextmanager
def running(toml: Path, *options: str) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with subprocess.Popen(
        command(toml, "--command", WEB, "--json", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


def ask(url: str, path: str = "/") -> str:
    with urlopen(url + path, timeout=20) as response:
        return response.read().decode()


def bearer(said: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {said['token']}"}


def machines(said: dict[str, Any]) -> list[dict[str, Any]]:
    request = Request(f"{said['api']}/v1/apps/small/machines", headers=bearer(said))
    with urlopen(request, timeout=20) as response:
        return json.loads(response.read())


def failed(toml: Path, *options: str, **env: str) -> str:
    done = subprocess.run(
        command(toml, *options),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 2, done
    return done.stderr


def test_a_request_wakes_a_machine_and_the_states_survive_a_restart(toml: Path) -> None:
    with running(toml, "--asleep", "--env", "GREETING=from the command line") as (_, said):
        assert {each["state"] for each in machines(said)} <= {"created", "stopped"}
        before = {each["id"] for each in machines(said)}
    with running(toml) as (_, said):
        assert {each["id"] for each in machines(said)} == before
        assert ask(said["url"], "/health")
        assert "started" in {each["state"] for each in machines(said)}


def test_a_command_that_dies_at_start_is_told_with_its_last_output(toml: Path) -> None:
    dies = shlex.join((sys.executable, "-c", "import sys; print('no database here'); sys.exit(3)"))
    said = failed(toml, "--command", dies, "--machines", "1")
    assert "died at start" in said
    assert "no database here" in said
    assert "hint:" in said


def test_a_command_that_does_not_exist_is_told(toml: Path) -> None:
    assert "no-such-program" in failed(toml, "--command", "no-such-program", "--machines", "1")


@pytest.mark.parametrize("option", ["--port", "--api-port"])
def test_a_port_in_use_is_named(toml: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = failed(toml, "--command", WEB, option, port)
    assert port in said
    assert "hint:" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--minute", "soon"), "--minute soon"),
        (("--minute", "0s"), "--minute 0s"),
        (("--env", "GREETING"), "GREETING"),
        (("--secret", "NOT_THERE"), "NOT_THERE"),
    ],
)
def test_wrong_options_are_named(toml: Path, options: tuple[str, ...], words: str) -> None:
    assert words in failed(toml, "--command", WEB, *options)


def test_a_secrets_value_is_nowhere_in_what_is_printed(toml: Path) -> None:
    dies = shlex.join((sys.executable, "-c", "import sys; sys.exit(3)"))
    said = failed(toml, "--command", dies, "--machines", "1", "--secret", "TOKEN", TOKEN="hunter2-canary")
    assert "hunter2" not in said
    assert "hunter2" not in (toml.parent / "state" / "machines.json").read_text(encoding="utf-8")


def children(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(each) for each in done.stdout.split()]


async def test_machines_end_though_nobody_reads_the_log_any_more(toml: Path) -> None:
    """Whoever started the emulator was killed: its pipes are broken when it is told to end."""
    with running(toml, "--machines", "1") as (process, said):
        await asyncio.to_thread(ask, said["url"], "/health")
        pids = children(process.pid)
        assert pids
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    await eventually(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Authorization", "Bearer x", 401),
        ("Host", "evil.example", 403),
        ("Origin", "http://evil.example", 403),
        ("Origin", "http://127.0.0.1", 403),
    ],
)
def test_the_api_is_for_programs_that_know_the_token(
    toml: Path, header: str, value: str, status: int
) -> None:
    with running(toml, "--asleep") as (_, said):
        url = f"{said['api']}/v1/apps/small/machines"
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(url, headers={**bearer(said), header: value}), timeout=20)
    refused.value.close()
    assert refused.value.code == status
