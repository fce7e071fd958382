"""What only some hosts can do: control groups, destroyed connections. Skipped with one line elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from fly_emulator.machine_config import Guest, Restart
from fly_emulator.machines import cgroup, connections, memory, processes
from fly_emulator.machines.freeze import CgroupFreezer, Freezer, FreezerName, SignalFreezer

from .fleets import QUICK, alive, eventually, get, opened, shell, until, web


def can(controller: cgroup.Controller) -> bool:
    if cgroup.find(controller) is None:
        return False
    group = cgroup.make(controller, f"probe-{os.getpid()}")
    if group is None:
        return False
    group.path.rmdir()
    return True


needs_memory = pytest.mark.skipif(not can("memory"), reason="this host lets us make no memory control groups")
needs_freezer = pytest.mark.skipif(not can("freezer"), reason="this host lets us make no freezers")


@needs_memory
async def test_what_takes_more_memory_than_it_has_is_killed_and_told(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, memory_limit=True)
    lines: list[str] = []
    config = web(guest=Guest(memory_mb=64), restart=Restart(policy="no"))
    async with opened(tmp_path, settings, lines=lines) as fleet:
        machine = fleet.create(config)
        await machine.start()
        assert await machine.wait_healthy(8080, 20.0)
        await get(machine, "/fill")
        await until(fleet, lambda: machine.state == "stopped")
        request = machine.record.events[0].request
        assert request is not None
        assert request.exit_event is not None
        assert request.exit_event.oom_killed
        assert request.exit_event.exit_code == 137
    found = cgroup.find("memory")
    assert found is not None
    assert not list(found[0].glob(f"*{machine.id}*"))
    assert any("Out of memory" in line for line in lines)


@needs_memory
async def test_with_a_control_group_sessions_of_their_own_end_too(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, memory_limit=True)
    async with opened(tmp_path, settings) as fleet:
        machine = fleet.create(web({"DESCENDANT": "session"}))
        await machine.start()
        assert await machine.wait_healthy(8080, 20.0)
        await machine.stop()
        descendant = int(machine.last_output[0].removeprefix("descendant "))
        await eventually(lambda: not alive(descendant))


@pytest.mark.parametrize("freezer", ["signal", pytest.param("cgroup", marks=needs_freezer)])
async def test_each_freezer_holds_a_machine_and_lets_it_go(tmp_path: Path, freezer: FreezerName) -> None:
    ticks = tmp_path / "ticks"
    settings = msgspec.structs.replace(QUICK, freezer=freezer)
    async with opened(tmp_path, settings) as fleet:
        machine = fleet.create(web({"TICKS": str(ticks)}))
        await machine.start()
        assert await machine.wait_healthy(8080, 20.0)
        for _ in range(3):
            await machine.suspend()
            frozen = ticks.read_text()
            await asyncio.sleep(0.02)
            assert ticks.read_text() == frozen
            await machine.start()
            await eventually(lambda frozen=frozen: ticks.read_text() not in (frozen, ""))
        await machine.suspend()
        await machine.stop()
        assert machine.state == "stopped"
        await machine.start()
        assert await machine.wait_healthy(8080, 20.0)


@pytest.mark.skipif(not processes.has_proc(), reason="this host has no /proc to look into")
async def test_a_parent_that_waits_for_a_stopped_vfork_child_counts_as_frozen() -> None:
    program = (
        "import ctypes, os, time\n"
        "libc = ctypes.CDLL(None)\n"
        "if libc.vfork() == 0:\n"
        "    time.sleep(600)\n"
        "    os._exit(0)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, start_new_session=True)
    try:
        # The parent waits and the child sleeps: before that an interpreter that reads its files is "D" too.
        await eventually(lambda: sorted(processes.group(process.pid).values()) == ["D", "S"])
        await SignalFreezer().freeze(process.pid)
        assert set(processes.group(process.pid).values()) == {"D", "T"}
    finally:
        processes.kill_group(process.pid)
        await process.wait()


@needs_freezer
async def test_freezers_keep_the_port_s_promises(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    group = cgroup.make("freezer", f"test-{process.pid}")
    assert group is not None
    group.procs.write_text(str(process.pid))
    freezers: list[Freezer] = [SignalFreezer(), CgroupFreezer(group)]
    # Where both hierarchies are mounted, v2's files are tried too.
    second = cgroup.make("freezer", f"v2-{process.pid}", lambda _: (Path("/sys/fs/cgroup/unified"), 2))
    if second is not None:
        second.procs.write_text(str(process.pid))
        freezers.append(CgroupFreezer(second))
    for freezer in freezers:
        await freezer.thaw(process.pid)
        await freezer.freeze(process.pid)
        await freezer.freeze(process.pid)
        await freezer.thaw(process.pid)
        await freezer.thaw(process.pid)
    process.kill()
    await process.wait()
    for freezer in freezers:
        if isinstance(freezer, CgroupFreezer):
            assert await freezer.group.remove()


def test_version_two_is_written_its_own_files(tmp_path: Path) -> None:
    group = memory.limit("x", 64, lambda _: (tmp_path, 2))
    assert group is not None
    assert (tmp_path / "fly-emulator-x" / "memory.max").read_text() == str(64 * 1024 * 1024)
    assert not group.oom_killed()
    (tmp_path / "fly-emulator-x" / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert group.oom_killed()


def test_hierarchies_are_found_in_the_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.subtree_control").write_text("cpu memory\n")
    mounts.write_text(f"cgroup2 {unified} cgroup2 rw 0 0\n")
    assert cgroup.find("memory", mounts) == (unified, 2)
    (unified / "cgroup.subtree_control").write_text("cpu\n")
    assert cgroup.find("memory", mounts) is None
    assert cgroup.find("freezer", mounts) == (unified, 2)
    mounts.write_text(f"cgroup2 {unified} cgroup2 rw 0 0\ncgroup /one cgroup rw,memory 0 0\n")
    assert cgroup.find("memory", mounts) == (Path("/one"), 1)
    assert cgroup.find("memory", tmp_path / "none") is None


async def test_suspending_destroys_connections(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    _, probe = await asyncio.open_connection(host, port)
    possible = await connections.cut(frozenset({os.getpid()})) is not None
    probe.close()
    if not possible:
        server.close()
        pytest.skip("this host does not let us destroy connections")
    gone = asyncio.Event()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionError:
            gone.set()
        writer.close()

    database = await asyncio.start_server(upstream, "127.0.0.1", 0)
    address = database.sockets[0].getsockname()[1]
    program = tmp_path / "connect.py"
    program.write_text(
        "import socket, time\n"
        f"connection = socket.create_connection(('127.0.0.1', {address}))\n"
        "print('connected', flush=True)\n"
        "try:\n    connection.recv(1)\n"
        "except ConnectionError as error:\n    print('told', type(error).__name__, flush=True)\n"
        "time.sleep(600)\n"
    )
    lines: list[str] = []
    settings = msgspec.structs.replace(QUICK, cut_connections=True)
    async with opened(tmp_path, settings, lines=lines) as fleet:
        machine = fleet.create(shell(f"exec python3 {program}"))
        await machine.start()
        await eventually(lambda: any("connected" in line for line in lines))
        await machine.suspend()
        await asyncio.wait_for(gone.wait(), 10)
        await machine.start()
        await eventually(lambda: any("told ConnectionAbortedError" in line for line in lines))
    server.close()
    database.close()
