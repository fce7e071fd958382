"""A fleet and its state file: what survives the emulator, and what must not."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import sys
from pathlib import Path

import pytest

from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.machines import ids, processes, wire
from fly_emulator.machines.fleet import Fleet, open_fleet
from fly_emulator.machines.host import Host
from fly_emulator.machines.limits import RateLimits
from fly_emulator.machines.machine import Machine
from fly_emulator.ports import FleetView, MachineView

from .fleets import PROGRAMS, QUICK, WEB, alive, eventually, opened, shell, until


async def test_machines_survive_a_restart_of_the_emulator_as_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        running = fleet.create(WEB, name="running", region="ams")
        waiting, gone = fleet.create(WEB), fleet.create(WEB)
        fleet.cordon(waiting.id)
        await running.start()
        await gone.destroy()
    async with opened(tmp_path) as fleet:
        first, second = fleet.machines()
        assert (first.id, first.name, first.region, first.state) == (running.id, "running", "ams", "stopped")
        assert first.config == WEB
        assert first.record.events[0].type == "exit"
        assert (second.id, second.state, second.cordoned) == (waiting.id, "created", True)
        assert fleet.find(gone.id).state == "destroyed"


async def test_what_a_dead_emulator_left_running_is_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(shell("sleep 600"))
        await machine.start()
        pid = machine.pid
        assert pid is not None
        died = (tmp_path / "machines.json").read_bytes()
        left = tmp_path / "left"
        left.mkdir()
        (left / "machines.json").write_bytes(died)
        async with opened(left) as successor:
            assert successor.find(machine.id).state == "stopped"
            await eventually(lambda: not alive(pid))
        await until(fleet, lambda: machine.state == "stopped")


async def test_a_pid_that_is_somebody_elses_now_is_left_alone(tmp_path: Path) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        async with opened(tmp_path) as fleet:
            machine = fleet.create(shell("sleep 600"))
            machine.record.process = processes.Identity(pid=other.pid, started="long ago")
            fleet.save()
            (tmp_path / "copy").mkdir()
            (tmp_path / "copy" / "machines.json").write_bytes((tmp_path / "machines.json").read_bytes())
            machine.record.process = None
        async with opened(tmp_path / "copy"):
            assert alive(other.pid)
    finally:
        other.kill()
        await other.wait()


async def test_orphans_of_a_dead_main_child_are_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(shell("sleep 600"))
        await machine.start()
        assert machine.pid is not None
        known = processes.Identity(pid=machine.pid, started="another time")
        assert processes.end_leftover(known, machine.id)
        await until(fleet, lambda: machine.state == "stopped")


async def test_a_damaged_state_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "machines.json").write_text("{")
    with pytest.raises(EmulatorError, match="damaged") as caught:
        await open_fleet("app", primary_region="fra", directory=tmp_path, settings=QUICK)
    assert caught.value.hint


async def test_the_state_file_follows_every_move(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(shell("sleep 600"))
        await machine.start()
        stored = json.loads((tmp_path / "machines.json").read_text())["machines"][0]
        assert stored["state"] == "started"
        assert stored["process"]["pid"] == machine.pid
        assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))  # noqa: PTH208


async def test_changes_tell_of_everything_since_they_were_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        changes = fleet.changes()
        machine = fleet.create(WEB)
        await anext(changes)
        follower = asyncio.create_task(anext(changes))
        await asyncio.sleep(0)
        assert not follower.done()
        fleet.cordon(machine.id)
        await follower
        await changes.aclose()


async def test_names_are_unique_and_machines_are_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        machine = fleet.create(WEB, name="one")
        with pytest.raises(StateError, match="one") as caught:
            fleet.create(WEB, name="one")
        assert caught.value.status == 409
        assert fleet.get(machine.id) is machine
        assert fleet.get("none") is None
        with pytest.raises(StateError) as missing:
            await fleet.start("none")
        assert missing.value.status == 404


def test_fleet_and_machine_are_what_the_edge_relies_on() -> None:
    def fleet_view(fleet: Fleet) -> FleetView:
        return fleet

    def machine_view(machine: Machine) -> MachineView:
        return machine

    def host(fleet: Fleet) -> Host:
        return fleet

    # The type checker is the test.
    assert all((fleet_view, machine_view, host))


def test_identifiers_have_flys_shapes() -> None:
    assert ids.ulid(0) < ids.ulid(1) < ids.ulid()
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", ids.ulid())
    assert re.fullmatch(r"[0-9a-f]{14}", ids.machine_id())
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d{4}", ids.machine_name())
    assert ipaddress.ip_address(ids.private_ip()).is_private


def test_rate_limits_refill() -> None:
    now = [0.0]
    limits = RateLimits(lambda: now[0])
    assert [limits.admit("start", "m") for _ in range(4)] == [True, True, True, False]
    assert limits.admit("start", "other")
    assert limits.admit("stop", "m")
    now[0] = 1.0
    assert [limits.admit("start", "m") for _ in range(2)] == [True, False]
    assert [limits.admit("get", "m") for _ in range(11)].count(True) == 10


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("nginx", ("registry-1.docker.io", "nginx", None, None)),
        ("library/ubuntu:latest", ("registry-1.docker.io", "library/ubuntu", "latest", None)),
        ("registry.fly.io/app@sha256:0f", ("registry.fly.io", "app", None, "sha256:0f")),
        ("localhost:5000/app:v1@sha256:0f", ("localhost:5000", "app", "v1", "sha256:0f")),
    ],
)
def test_image_references(reference: str, parts: tuple[str | None, ...]) -> None:
    found = wire.image_ref(reference)
    assert tuple(found.get(name) for name in ("registry", "repository", "tag", "digest")) == parts


async def test_two_emulators_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(EmulatorError, match="another emulator uses"):
            await open_fleet("app", primary_region="fra", directory=tmp_path, settings=QUICK)
    async with opened(tmp_path):
        pass


async def test_after_a_kill_of_the_emulator_the_next_one_leaves_nothing_running(tmp_path: Path) -> None:
    emulator = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAMS / "emulator.py"), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert emulator.stdout is not None
    groups = [int(pid) for pid in (await emulator.stdout.readline()).split()]
    emulator.kill()
    await emulator.wait()
    assert all(processes.group(group) for group in groups)
    async with opened(tmp_path) as fleet:
        assert [machine.state for machine in fleet.machines()] == ["stopped", "stopped"]
        await eventually(lambda: not any(processes.group(group) for group in groups))
        for machine in fleet.machines():
            await machine.start()
