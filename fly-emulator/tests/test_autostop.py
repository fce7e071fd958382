"""Autostop: the formula's laws, and a pass over real machines."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.edge.autostop import Idle, plan
from fly_emulator.machine_config import Autostop, MachineConfig
from fly_emulator.timescale import TimeScale

from .edge_client import RawClient, an_edge, until, within
from .local_fleet import LocalFleet, LocalMachine, answering, raw, service, whoami
from .test_tunnel import echo


@pytest.fixture
def fleet() -> LocalFleet:
    return LocalFleet()


idles = st.lists(
    st.builds(
        Idle,
        id=st.uuids().map(str),
        region=st.sampled_from(("fra", "iad")),
        group=st.sampled_from(("app", "worker")),
        running=st.booleans(),
        mode=st.sampled_from(("off", "stop", "suspend")),
        load=st.integers(0, 3),
        over_soft=st.booleans(),
        min_running=st.integers(0, 2),
    ),
    max_size=10,
)


@given(idles, st.sampled_from(("least_loaded", "oldest", "newest")))
def test_the_formula(machines: list[Idle], order: Any) -> None:
    stops = plan(machines, "fra", order)
    by_id = {one.id: one for one in machines}
    assert all(count == 1 for count in Counter(stop.region for stop in stops).values())
    for stop in stops:
        one = by_id[stop.machine]
        members = [other for other in machines if (other.region, other.group) == (one.region, one.group)]
        running = [other for other in members if other.running]
        assert one.running
        assert one.mode == stop.mode != "off"
        assert (stop.left, stop.total) == (len(running) - 1, len(members))
        if len(running) == 1:
            assert one.load == 0
        else:
            assert len(running) - (sum(other.over_soft for other in running) + 1) >= 1
        if one.region == "fra":
            assert stop.left >= max(other.min_running for other in running)


@given(idles)
def test_excess_is_stopped(machines: list[Idle]) -> None:
    """Where nothing forbids it, a region with excess loses a machine in every pass."""
    stopped = {stop.region for stop in plan(machines, "nowhere", "oldest")}
    for region in ("fra", "iad"):
        for group in ("app", "worker"):
            running = [one for one in machines if one.running and (one.region, one.group) == (region, group)]
            if not any(one.mode != "off" for one in running):
                continue
            over = sum(one.over_soft for one in running)
            excess = running[0].load == 0 if len(running) == 1 else len(running) - (over + 1) >= 1
            if excess:
                assert region in stopped


def autostopping(machine: LocalMachine, mode: Autostop = "stop", **more: Any) -> LocalMachine:
    machine.config = MachineConfig(services=(service(autostop=mode, **more),))
    return machine


async def test_a_single_idle_machine_is_stopped_with_flys_log_line(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = autostopping(fleet.add(whoami))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        assert await edge.autostop.run_pass() == [machine.id]
        assert machine.state == "stopped"
        line = (
            f"App testapp has excess capacity, autostopping machine {machine.id}. 0 out of 1 machines left "
            "running (region=fra, process group=app)"
        )
        assert edge.lines == [f"proxy[{machine.id}] fra [info]{line}"]
        assert await edge.autostop.run_pass() == []
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.answer())[0] == 200


async def test_a_stream_keeps_a_single_machine_but_not_one_of_two(fleet: LocalFleet, tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    first = autostopping(fleet.add(raw(hold)), "suspend")
    await first.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        await until(lambda: edge.load(first.id) == 1)
        assert await edge.autostop.run_pass() == []
        second = autostopping(fleet.add(raw(hold)), "suspend")
        await second.start()
        other = await RawClient.connect(edge)
        other.get("/", f"fly-force-instance-id: {second.id}")
        await until(lambda: edge.load(second.id) == 1)
        assert await edge.autostop.run_pass() == [first.id]
        assert first.state == "suspended"
        assert edge.logged("1 out of 2 machines left running")


async def test_min_machines_running_and_off(fleet: LocalFleet, tmp_path: Path) -> None:
    kept = [autostopping(fleet.add(whoami), min_machines_running=2) for _ in range(3)]
    never = autostopping(fleet.add(whoami, region="iad"), "off")
    for machine in (*kept, never):
        await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        assert len(await edge.autostop.run_pass()) == 1
        assert await edge.autostop.run_pass() == []


async def test_a_request_during_the_soft_cordon_saves_the_machine(fleet: LocalFleet, tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    machine = autostopping(fleet.add(raw(hold)))
    await machine.start()
    async with an_edge(fleet, tmp_path, soft_cordon_seconds=0.2) as edge:
        passing = asyncio.create_task(edge.autostop.run_pass())
        await until(lambda: edge.status().draining == [machine.id])
        (await RawClient.connect(edge)).get()
        assert await within(passing) == []
        assert machine.state == "started"
        assert edge.load(machine.id) == 1
        assert edge.status().draining == []


async def test_websockets_are_told_before_the_stop(fleet: LocalFleet, tmp_path: Path) -> None:
    machine, other = (autostopping(fleet.add(answering(echo)), soft=5) for _ in range(2))
    for one in (machine, other):
        await one.start()
    async with an_edge(fleet, tmp_path, autostop_order="oldest") as edge, ClientSession() as session:
        forced = {"fly-force-instance-id": machine.id}
        async with session.ws_connect(edge.http_url, headers=forced) as socket:
            passing = asyncio.create_task(edge.autostop.run_pass())
            message = await within(socket.receive())
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        assert await within(passing) == [machine.id]


async def test_passes_run_by_themselves_in_scaled_minutes(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = autostopping(fleet.add(whoami))
    await machine.start()
    scale = TimeScale(minute_seconds=0.01)
    async with an_edge(fleet, tmp_path, time_scale=scale, autostop_minutes=5.0):
        await until(lambda: machine.state == "stopped")
