"""A machine's life, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from fly_emulator.errors import LaunchError, StateError
from fly_emulator.machine_config import (
    Check,
    Guest,
    Init,
    MachineConfig,
    Metrics,
    Restart,
    Service,
    StopConfig,
)
from fly_emulator.machines import states
from fly_emulator.machines.environment import Image
from fly_emulator.machines.events import ExitEvent
from fly_emulator.machines.fleet import Fleet
from fly_emulator.machines.machine import Machine

from .fleets import QUICK, WEB, alive, eventually, get, opened, shell, until, web


async def started(fleet: Fleet, config: MachineConfig = WEB) -> Machine:
    machine = fleet.create(config)
    await machine.start()
    return machine


async def ready(fleet: Fleet, config: MachineConfig = WEB) -> Machine:
    machine = await started(fleet, config)
    assert await machine.wait_healthy(8080, 20.0)
    return machine


def last_exit(machine: Machine) -> ExitEvent:
    found = next(event for event in machine.record.events if event.type == "exit")
    assert found.request is not None
    assert found.request.exit_event is not None
    return found.request.exit_event


async def test_it_is_given_a_port_of_its_own_and_flys_variables(tmp_path: Path) -> None:
    config = web(
        {"PORT": "8080", "METRICS_PORT": "9091", "OTHER": "80", "FLY_REGION": "nowhere"},
        metrics=Metrics(port=9091),
        guest=Guest(memory_mb=512),
    )
    settings = msgspec.structs.replace(QUICK, passed={"OTHER": "passed", "HINT": "1"}, secrets={"KEY": "s"})
    async with opened(tmp_path, settings) as fleet:
        machine = await ready(fleet, config)
        env = json.loads(await get(machine, "/env"))
    assert int(env["PORT"]) == machine.address(8080)[1] != 8080
    assert int(env["METRICS_PORT"]) == machine.address(9091)[1] != 9091
    assert env["OTHER"] == "80"
    assert env["HINT"] == "1"
    assert env["KEY"] == "s"
    expected = {
        "FLY_APP_NAME": "app",
        "FLY_MACHINE_ID": machine.id,
        "FLY_ALLOC_ID": machine.id,
        "FLY_REGION": "fra",
        "FLY_IMAGE_REF": config.image,
        "FLY_MACHINE_VERSION": machine.record.instance_id,
        "FLY_PROCESS_GROUP": "app",
        "FLY_VM_MEMORY_MB": "512",
        "FLY_PRIVATE_IP": machine.record.private_ip,
        "PRIMARY_REGION": "fra",
    }
    assert expected.items() <= env.items()
    assert "FLY_PUBLIC_IP" not in env
    assert "PYTEST_CURRENT_TEST" not in env
    assert len(machine.id) == 14
    assert set(machine.id) <= set("0123456789abcdef")
    assert len(machine.record.instance_id) == 26


async def test_the_command_comes_from_the_image_unless_the_config_names_one(tmp_path: Path) -> None:
    image = Image(entrypoint=("/bin/sh", "-c"), cmd=("echo from the image",), cwd=str(tmp_path))
    settings = msgspec.structs.replace(QUICK, image=image)
    plain = MachineConfig(image="x", restart=Restart(policy="no"), services=(Service(internal_port=8080),))
    other = msgspec.structs.replace(plain, init=Init(cmd=("pwd",)))
    async with opened(tmp_path, settings) as fleet:
        first, second = await started(fleet, plain), await started(fleet, other)
        await until(fleet, lambda: first.state == second.state == "stopped")
        assert first.last_output == ["from the image"]
        assert second.last_output == [str(tmp_path)]


async def test_words_of_the_command_that_are_the_port_are_replaced(tmp_path: Path) -> None:
    init = Init(exec=("/bin/echo", "8080", "--port=8080", "[::]:8080", "80", "18080"))
    config = shell("", init=init, services=(Service(internal_port=8080),))
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, config)
        await until(fleet, lambda: machine.state == "stopped")
        port = machine.address(8080)[1]
        assert machine.last_output == [f"{port} --port={port} [::]:{port} 80 18080"]


async def test_stop_sends_the_kill_signal_and_notes_a_requested_exit(tmp_path: Path) -> None:
    lines: list[str] = []
    async with opened(tmp_path, lines=lines) as fleet:
        machine = await ready(fleet)
        pid = machine.pid
        await machine.stop()
        assert machine.state == "stopped"
        assert machine.pid is None
        assert last_exit(machine).requested_stop
        assert last_exit(machine).exit_code == 0
        assert machine.last_output[-1] == "draining"
        assert [event.type for event in machine.record.events[:3]] == ["exit", "stop", "start"]
    text = "\n".join(lines)
    assert f"runner[{machine.id}] fra [info] Starting machine" in text
    assert f"Sending signal SIGTERM to main child process w/ PID {pid}" in text
    assert "Main child exited normally with code: 0" in text
    assert f"app[{machine.id}] fra [info] listening" in text
    assert "listening" in (tmp_path / "logs" / f"{machine.id}.log").read_text()


async def test_what_does_not_stop_is_killed_after_the_timeout(tmp_path: Path) -> None:
    config = web({"STUBBORN": "1"}, stop_config=StopConfig(signal="SIGTERM", timeout="50ms"))
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet, config)
        await machine.stop()
        exit_event = last_exit(machine)
        assert (exit_event.exit_code, exit_event.signal, exit_event.guest_signal) == (137, 9, 9)
        assert exit_event.requested_stop


async def test_descendants_go_with_the_main_child(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, shell("sleep 600 & echo $!; exit 3"))
        await until(fleet, lambda: machine.state == "stopped")
        assert last_exit(machine).exit_code == 3
        descendant = int(machine.last_output[0])
        await eventually(lambda: not alive(descendant))


async def test_exit_zero_under_on_failure_stops_and_a_start_wakes(tmp_path: Path) -> None:
    lines: list[str] = []
    async with opened(tmp_path, lines=lines) as fleet:
        machine = await ready(fleet)
        await get(machine, "/exit/0")
        await until(fleet, lambda: machine.state == "stopped")
        assert not last_exit(machine).requested_stop
        assert not machine.healthy(8080)
        await machine.start()
        assert await machine.wait_healthy(8080, 20.0)
    assert any(line.endswith("machine exited with exit code 0, not restarting") for line in lines)


async def test_a_crash_is_restarted_until_the_retries_are_used_up(tmp_path: Path) -> None:
    lines: list[str] = []
    config = shell("echo no database; exit 1", restart=Restart(policy="on-failure", max_retries=2))
    async with opened(tmp_path, lines=lines) as fleet:
        machine = await started(fleet, config)
        await until(fleet, lambda: machine.state == "stopped")
        exits = [event.request for event in machine.record.events if event.type == "exit"]
        restarting = [request.exit_event.restarting for request in exits if request and request.exit_event]
        assert restarting == [False, True, True]
        assert [event.type for event in machine.record.events].count("start") == 6
    assert any("machine has reached its max restart count of 2" in line for line in lines)
    assert any("no database" in line and "runner[" in line for line in lines)


async def test_always_restarts_a_clean_exit_and_a_stop_ends_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet, web(restart=Restart(policy="always")))
        first = machine.pid
        await get(machine, "/exit/0")
        await until(fleet, lambda: machine.pid not in (first, None) and machine.state == "started")
        await machine.stop()
        assert machine.state == "stopped"


async def test_a_stop_while_it_waits_to_restart_is_obeyed(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, restart_backoff=600.0)
    async with opened(tmp_path, settings) as fleet:
        machine = await started(fleet, shell("exit 1", restart=Restart(policy="always")))
        await until(fleet, lambda: machine.state == "restarting")
        assert not await machine.wait_healthy(8080, 5.0)
        await machine.stop()
        assert machine.state == "stopped"


async def test_auto_destroy_removes_it_when_it_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, shell("exit 0", auto_destroy=True))
        await until(fleet, lambda: machine.state == "destroyed")
        assert fleet.machines() == []
        assert fleet.get(machine.id) is None


async def test_auto_destroy_removes_it_when_it_is_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, shell("sleep 60", auto_destroy=True))
        await machine.stop()
        assert machine.state == "destroyed"


async def test_a_command_that_does_not_exist_fails_at_once(tmp_path: Path) -> None:
    lines: list[str] = []
    async with opened(tmp_path, lines=lines) as fleet:
        machine = fleet.create(shell("", init=Init(exec=("no-such-program-here",))))
        with pytest.raises(LaunchError, match="no-such-program-here"):
            await machine.start()
        assert machine.state == "failed"
    assert any("Failed to spawn command: no such program: no-such-program-here" in line for line in lines)


async def test_wait_healthy_gives_up_when_the_machine_does(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, web({"PORT": "not a port"}, restart=Restart(policy="no")))
        assert not await machine.wait_healthy(8080, 20.0)
        assert machine.state == "stopped"
        assert "ValueError" in machine.last_output[-1]


async def test_suspend_freezes_and_start_thaws_the_same_process(tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet, web({"TICKS": str(ticks)}))
        pid = machine.pid
        await eventually(lambda: ticks.exists() and ticks.read_text() != "")
        await machine.suspend()
        assert machine.state == "suspended"
        assert not machine.healthy(8080)
        frozen = ticks.read_text()
        await asyncio.sleep(0.03)
        assert ticks.read_text() == frozen
        await machine.start()
        assert machine.state == "started"
        assert await machine.wait_healthy(8080, 20.0)
        assert machine.pid == pid
        await eventually(lambda: ticks.read_text() != frozen)


async def test_stopping_a_suspended_machine_discards_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        pid = machine.pid
        assert pid is not None
        await machine.suspend()
        await machine.stop()
        assert machine.state == "stopped"
        assert not alive(pid)
        assert machine.last_output[-1] == "listening"


async def test_a_suspended_machine_that_is_killed_is_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        await machine.suspend()
        assert machine.pid is not None
        os.kill(machine.pid, signal.SIGKILL)
        await until(fleet, lambda: machine.state == "stopped")


@pytest.mark.parametrize(
    "config",
    [
        web(guest=Guest(memory_mb=4096)),
        web(init=msgspec.structs.replace(WEB.init, swap_size_mb=512)),
        web(schedule="hourly"),
    ],
    ids=["memory", "swap", "schedule"],
)
async def test_suspend_falls_back_to_stop(tmp_path: Path, config: MachineConfig) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet, config)
        await machine.suspend()
        assert machine.state == "stopped"
        assert last_exit(machine).requested_stop


async def test_an_update_replaces_the_process_and_the_version(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        pid, version, port = machine.pid, machine.record.instance_id, machine.address(8080)[1]
        assert pid is not None
        await machine.update(web({"RELEASE": "2"}))
        assert await machine.wait_healthy(8080, 20.0)
        assert json.loads(await get(machine, "/env"))["RELEASE"] == "2"
        assert machine.record.instance_id != version
        assert machine.record.versions[0].id == version
        assert not alive(pid)
        assert machine.address(8080)[1] == port


async def test_an_update_of_a_suspended_machine_discards_the_snapshot(tmp_path: Path) -> None:
    lines: list[str] = []
    async with opened(tmp_path, lines=lines) as fleet:
        machine = await ready(fleet)
        pid = machine.pid
        assert pid is not None
        await machine.suspend()
        await machine.update(web({"RELEASE": "2"}))
        assert machine.state == "stopped"
        assert not alive(pid)
    assert any("leaving the new version stopped" in line for line in lines)


async def test_a_start_while_it_is_replaced_is_refused(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, replace_seconds=0.2)
    async with opened(tmp_path, settings) as fleet:
        machine = fleet.create(WEB)
        accepted = asyncio.Event()
        update = asyncio.create_task(machine.update(web({"RELEASE": "2"}), accepted=accepted.set))
        await accepted.wait()
        with pytest.raises(StateError, match="getting replaced") as caught:
            await machine.start()
        assert caught.value.status == 412
        await update
        await machine.start()
        assert machine.state == "started"


async def test_destroy_needs_force_while_it_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        pid = machine.pid
        assert pid is not None
        with pytest.raises(StateError, match="unable to destroy"):
            await machine.destroy()
        await machine.destroy(force=True)
        assert machine.state == "destroyed"
        assert not alive(pid)


async def test_many_operations_at_once_leave_a_settled_machine(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(WEB)
        operations = [machine.start(), machine.stop(), machine.start(), machine.suspend(), machine.start()]
        await asyncio.gather(*operations, return_exceptions=True)
        assert machine.state in ("started", "stopped", "suspended")
        if machine.state != "started":
            await machine.start()
        assert await machine.wait_healthy(8080, 20.0)


async def test_a_port_that_is_taken_is_not_used_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        port = machine.address(8080)[1]
        await machine.stop()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            await machine.start()
            assert machine.address(8080)[1] != port
            assert await machine.wait_healthy(8080, 20.0)


async def test_signals_reach_the_main_child(tmp_path: Path) -> None:
    lines: list[str] = []
    async with opened(tmp_path, lines=lines) as fleet:
        machine = await ready(fleet)
        machine.signal(signal.SIGUSR1)
        await eventually(lambda: any(line.endswith("usr1") for line in lines))


async def test_restart_stops_and_starts(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = await ready(fleet)
        first = machine.pid
        await machine.restart()
        assert await machine.wait_healthy(8080, 20.0)
        assert machine.pid != first
        assert last_exit(machine).restarting


async def test_a_service_of_two_checks_needs_both(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    service = Service(internal_port=8080, checks=(Check(type="tcp"), Check(path="/health")))
    async with opened(tmp_path) as fleet:
        machine = await started(fleet, web({"HEALTH_FLAG": str(flag)}, services=(service,)))
        await until(fleet, lambda: machine.check_results()[0].status == "passing")
        assert not machine.healthy(8080)
        flag.touch()
        assert await machine.wait_healthy(8080, 20.0)


async def test_a_caller_that_goes_away_does_not_leave_it_half_started(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(WEB)
        caller = asyncio.create_task(machine.start())
        await until(fleet, lambda: machine.state == "starting")
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled()
        await machine.settled()
        assert machine.state == "started"
        assert await machine.wait_healthy(8080, 20.0)


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_of_operations_keeps_state_and_process_together(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    config = shell("trap 'exit 0' INT; while :; do sleep 0.005; done")
    async with opened(tmp_path) as fleet:
        machine = fleet.create(config)
        operations: list[Callable[[], Coroutine[Any, Any, None]]] = [
            machine.start,
            machine.stop,
            machine.suspend,
            machine.restart,
            lambda: machine.update(config),
            lambda: machine.update(config, launch=False),
        ]
        for _ in range(25):
            several = choose.choices(operations, k=choose.choice([1, 1, 2]))
            before = machine.state
            results = await asyncio.gather(*(one() for one in several), return_exceptions=True)
            refused = [result for result in results if result is not None]
            assert all(isinstance(one, StateError) and one.status == 412 for one in refused), (
                before,
                refused,
            )
            assert machine.state in states.PERSISTENT
            assert (machine.pid is not None) == (machine.state in ("started", "suspended"))
            assert (machine.record.process is not None) == (machine.pid is not None)
            if machine.pid is not None:
                assert alive(machine.pid)


def test_it_runs_on_the_loop_the_emulator_uses(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as fleet:
            machine = await ready(fleet)
            await machine.suspend()
            await machine.start()
            assert await machine.wait_healthy(8080, 20.0)
            await get(machine, "/exit/0")
            await until(fleet, lambda: machine.state == "stopped")

    uvloop.run(life())
