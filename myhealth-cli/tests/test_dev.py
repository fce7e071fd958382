from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
import re
import signal
import socket
import stat
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import psutil
import pytest

from myhealth_cli.apple_health.generate import generate_export
from myhealth_cli.client import Client
from myhealth_cli.demo import SEED, Demo
from myhealth_cli.ids import uuid7
from myhealth_cli.plain import PlainView
from myhealth_cli.postgres import Postgres
from myhealth_cli.processes import Family
from myhealth_cli.script import QUESTIONS
from myhealth_cli.transcript import Transcript
from myhealth_cli.turn import show

from .devprocess import PATIENCE_S, Dev, dev, gone, myhealth, until
from .ports import free_port


def results(output: str) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("    = ")) for line in output.splitlines() if line.startswith("    = ")
    ]


def truth(folder: Path, start: str, end: str) -> dict[str, float]:
    """Return the true steps per day, from the generator's timeline."""
    demo = Demo(folder, dt.datetime.now(ZoneInfo("Europe/Berlin")).date())
    span = demo.span
    generated = generate_export(
        folder / "again.xml", seed=SEED, days=span.days, end_date=span.through, density=0.01, trips=()
    )
    days = {day.isoformat(): true.steps for day, true in generated.truth.items()}
    return {day: steps for day, steps in days.items() if start <= day <= end}


def test_without_a_terminal_it_plays_a_conversation_whose_figures_are_those_of_the_data(
    tmp_path: Path,
) -> None:
    process = myhealth(tmp_path, "dev", "--port", str(free_port()), IDLE_SECONDS="0.5")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    noted = [re.sub(r"[\d,]+ ms", "N ms", line) for line in output.splitlines() if line.startswith("· ")]
    assert noted[-5:] == [
        "· idle ...",
        "· asleep after N ms",
        "· waking ...",
        "· awake after N ms",
        "· first token after N ms",
    ]
    # On a busy machine it may have slept and woken before the first question as well.
    assert output.rindex("· first token") > output.index(QUESTIONS[-1])
    assert [line[2:] for line in output.splitlines() if line.startswith("? ")] == list(QUESTIONS)
    steps, sleep, workouts, trend = results(output)
    figures = {day["date"]: day["value"] for day in steps["daily"]}
    true = truth(tmp_path, steps["start"], steps["end"])
    assert len(figures) == 7
    assert figures.keys() == true.keys()
    # Devices see a little less or more than what happened: a phone left at home, a watch at the charger.
    assert sum(figures.values()) == pytest.approx(sum(true.values()), rel=0.1)
    assert str(steps["summary"]["total"]) in output.partition(QUESTIONS[1])[0]
    assert sleep["nights_with_data"] == 7
    assert workouts["count"] >= 1
    assert trend["days_with_data"] >= 50
    assert not list((tmp_path / "data").glob("*/processes.json"))


def test_the_second_start_imports_nothing_and_an_interrupt_ends_everything(tmp_path: Path) -> None:
    port = free_port()
    with dev(tmp_path, port) as first:
        assert any("Demo data" in line for line in first.said)
        servers = first.servers()
        assert first.end(signal.SIGINT) == 128 + signal.SIGINT
        assert gone(servers)
    with dev(tmp_path, port) as second:
        assert not any("Demo data" in line for line in second.said)


def test_a_kill_leaves_nothing_behind(tmp_path: Path) -> None:
    running = Dev(tmp_path, free_port())
    servers = running.servers()
    assert {"postgres", "python"} <= {re.sub(r"[\d.]+$", "", each.name()) for each in servers}
    running.end(signal.SIGKILL)
    until("the keeper ends the servers", lambda: gone(servers))


def test_the_next_run_ends_what_even_the_keeper_could_not(tmp_path: Path) -> None:
    running = Dev(tmp_path, free_port())
    servers = running.servers()
    running.keeper().kill()
    running.end(signal.SIGKILL)
    assert not gone(servers)
    with dev(tmp_path, running.port) as second:
        assert gone(servers)
        assert not any("Demo data" in line for line in second.said)


def test_what_a_killed_fly_leaves_running_ends_as_well(tmp_path: Path) -> None:
    running = Dev(tmp_path, free_port())
    servers = running.servers()
    assert running.backend() in servers
    running.fly().kill()
    assert running.process.stdout is not None
    said = running.process.stdout.read()
    assert running.end() == 1
    assert "fly-emulator was killed (9)" in said
    assert gone(servers)


def test_the_keeper_ends_a_machine_whose_fly_was_killed_and_no_other_stack_s(
    tmp_path: Path, stack: Dev
) -> None:
    other = stack.backend()
    running = Dev(tmp_path, free_port())
    servers = running.servers()
    running.process.send_signal(signal.SIGSTOP)  # it must not see that the other one ends
    running.fly().kill()
    running.end(signal.SIGKILL)
    until("the keeper ends the machine", lambda: gone(servers))
    assert not gone([other])


def test_the_next_run_ends_a_machine_that_nobody_else_could(tmp_path: Path) -> None:
    running = Dev(tmp_path, free_port())
    backend, servers = running.backend(), running.servers()
    running.process.send_signal(signal.SIGSTOP)
    running.keeper().kill()
    running.fly().kill()
    running.end(signal.SIGKILL)
    assert not gone([backend])
    with dev(tmp_path, running.port):
        assert gone(servers)


def test_a_backend_that_dies_at_start_is_quoted_with_the_way_to_its_log(tmp_path: Path) -> None:
    port = free_port()
    process = myhealth(tmp_path, "dev", "--port", str(port), AGENTS_DIR=str(tmp_path / "nowhere"))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "died at start; its last output:" in output
    assert "nowhere" in output
    assert str(tmp_path / "data" / str(port) / "logs" / "fly-emulator.log") in output
    assert not list((tmp_path / "data").glob("*/processes.json"))


@pytest.mark.parametrize("how", ["exit", "suspend"])
async def test_the_machine_falls_asleep_and_a_message_wakes_it(tmp_path: Path, how: str) -> None:
    # Long enough that it does not fall asleep again between the two requests.
    with dev(tmp_path, IDLE_SECONDS="1", SLEEP=how) as running:
        async with (
            running.machine() as machine,
            Client(running.url, running.tokens(), sending=machine.sending) as client,
        ):
            looking = asyncio.create_task(machine.run())
            changes: list[str] = []
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await machine.until("asleep")
                    with machine.telling(lambda change: changes.append(str(change))):
                        session = uuid7()
                        await client.put_session(session)
                        view = PlainView(io.StringIO())
                        answer = Transcript()
                        await show(client.send(session, uuid7(), QUESTIONS[0]), answer, view, machine)
                        await machine.until("asleep")
            finally:
                looking.cancel()
        assert answer.ending == "success"
        assert machine.wake is not None
        assert machine.wake.slept is not None
        assert machine.wake.first_token is not None
        assert 0 < machine.wake.took < machine.wake.first_token < PATIENCE_S
        assert [re.sub(r"[\d,]+ ms", "N ms", each) for each in changes] == [
            "· waking ...",
            "· awake after N ms",
            "· first token after N ms",
            "· asleep",
        ]


async def test_a_crash_is_told_and_started_again(stack: Dev) -> None:
    async with stack.machine() as machine:
        changes: list[str] = []
        looking = asyncio.create_task(machine.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await machine.until("awake")
                with machine.telling(lambda change: changes.append(str(change))):
                    stack.backend().kill()
                    await machine.until("crashed")
                    await machine.until("awake")
        finally:
            looking.cancel()
    assert changes == ["· crashed; it is started again", "· awake"]
    assert machine.wake is None


async def test_a_database_of_one_s_own_is_used_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    async with Family(tmp_path / "own") as family:
        url = await Postgres(tmp_path / "own").start(family)
        with dev(tmp_path, DATABASE_URL=url) as running:
            assert running.backend().environ()["DATABASE_URL"] == url
            assert "postgres" not in {each.name() for each in running.servers()}
        connection = await asyncpg.connect(url)
        try:
            assert await connection.fetchval("SELECT count(*) FROM myhealth.deployment") == 1
        finally:
            await connection.close()


def test_a_fresh_start_imports_again(tmp_path: Path) -> None:
    with dev(tmp_path) as first:
        assert any("Demo data" in line for line in first.said)
    with dev(tmp_path, first.port, "--fresh") as second:
        assert any("Demo data" in line for line in second.said)


def test_a_port_in_use_is_named_with_the_way_to_choose_another(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = myhealth(tmp_path, "dev", "--port", str(port))
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert f"port {port} is in use by {psutil.Process().name()} (process {psutil.Process().pid})" in output
    assert f"make run PORT={port + 1}" in output


def test_a_second_dev_on_the_same_port_names_the_first(stack: Dev) -> None:
    process = myhealth(stack.folder, "dev", "--port", str(stack.port))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert f"port {stack.port} is in use by another `myhealth dev` (process {stack.process.pid})" in output
    assert f"make run PORT={stack.port + 1}" in output


def test_the_servers_get_no_secret_of_the_shell(tmp_path: Path) -> None:
    with dev(tmp_path, GITHUB_TOKEN="a-secret") as running:
        for each in running.servers():
            assert "GITHUB_TOKEN" not in each.environ()


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    with dev(tmp_path, ANTHROPIC_API_KEY="sk-a-secret", ANTHROPIC_BASE_URL="http://127.0.0.1:9") as running:
        assert running.backend().environ()["ANTHROPIC_API_KEY"] == "sk-a-secret"
        words = [word for each in running.servers() for word in each.cmdline()]
        assert not [word for word in words if "sk-a-secret" in word or "postgresql://" in word]


def test_private_folders_stay_private(stack: Dev) -> None:
    above = [stack.folder, *stack.folder.parents]
    closed = [each for each in above if not each.stat().st_mode & stat.S_IXOTH]
    assert closed, "pytest makes its folders with mode 700"
