"""Requests that wake machines: held until they are served, sharing one start."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from fly_emulator.machine_config import MachineConfig

from .edge_client import RawClient, an_edge, until
from .local_fleet import LocalFleet, answering, raw, service, whoami


@pytest.fixture
def fleet() -> LocalFleet:
    return LocalFleet()


async def test_a_wake_holds_the_requests_and_they_share_one_start(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    machine.become("suspended")
    machine.passing = False
    machine.gate.clear()
    async with an_edge(fleet, tmp_path) as edge:
        clients = [await RawClient.connect(edge) for _ in range(20)]
        for client in clients:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        await until(lambda: edge.status().requests == 20)
        assert edge.status().waking == [machine.id]
        machine.gate.set()
        await until(lambda: machine.state == "started")
        await asyncio.sleep(0)
        assert edge.open_load() == 0  # started is not yet healthy
        machine.set_passing(passing=True)
        for client in clients:
            status, _, body = await client.answer()
            assert (status, json.loads(body)["length"]) == (200, 3)
        assert machine.starts == 1
        assert edge.status().starts == 1
        assert len(edge.logged("Starting machine")) == 1
        assert edge.logged(f"proxy[{machine.id}] fra [info]machine became reachable in ")


async def test_a_client_that_leaves_during_the_wake_does_not_stop_it(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    machine = fleet.add(whoami)
    machine.gate.clear()
    async with an_edge(fleet, tmp_path) as edge:
        first, second = await RawClient.connect(edge), await RawClient.connect(edge)
        first.get()
        await until(lambda: machine.starts == 1)
        second.get()
        await until(lambda: edge.status().requests == 2)
        first.close()
        machine.gate.set()
        assert (await second.answer())[0] == 200
        assert machine.starts == 1


async def test_a_wake_that_takes_too_long_is_503_with_flys_words(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    machine.gate.clear()
    async with an_edge(fleet, tmp_path, wake_timeout=0.1) as edge:
        client = await RawClient.connect(edge)
        client.get()
        status, headers, body = await client.answer()
        assert (status, body, headers["fly-emulator-error"]) == (503, b"", "PR03")
        assert edge.logged("[PM03]")
        machine.become("stopped")
        machine.gate.set()
        machine.passing = False
        client.get()
        assert (await client.answer())[0] == 503
        assert edge.logged("[PM05] failed to connect to machine: gave up after 15 attempts (in ")


async def test_a_machine_that_will_not_start_gives_way_to_another(fleet: LocalFleet, tmp_path: Path) -> None:
    broken, good = fleet.add(whoami), fleet.add(whoami)
    broken.start_error = "machine getting replaced, refusing to start"
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        assert json.loads((await client.answer())[2])["machine"] == good.id
        assert edge.logged(
            "[PM07] failed to change machine state: machine getting replaced, refusing to start"
        )


async def test_above_the_soft_limit_another_machine_starts_beside(fleet: LocalFleet, tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    first, second = fleet.add(raw(hold)), fleet.add(raw(hold))
    for machine in (first, second):
        machine.config = MachineConfig(services=(service(soft=1),))
    await first.start()
    second.gate.clear()
    async with an_edge(fleet, tmp_path) as edge:
        for _ in range(3):
            (await RawClient.connect(edge)).get()
        await until(lambda: edge.load(first.id) == 3)  # forwarded now, not held
        assert second.starts == 1
        second.gate.set()
        await until(lambda: second.state == "started")
        (await RawClient.connect(edge)).get()
        await until(lambda: edge.load(second.id) == 1)


@pytest.mark.parametrize("autostart", [True, False])
async def test_without_autostart_nothing_is_woken(
    fleet: LocalFleet, tmp_path: Path, *, autostart: bool
) -> None:
    machine = fleet.add(whoami)
    machine.config = MachineConfig(services=(service(autostart=autostart),))
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        status, headers, _ = await client.answer()
        assert (status == 200) == autostart == (machine.starts == 1)
        assert headers.get("fly-emulator-error") == (None if autostart else "PR04")


async def test_a_request_to_a_stopping_machine_waits_and_wakes_it_again(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    machine = fleet.add(whoami)
    await machine.start()
    machine.stop_gate.clear()
    async with an_edge(fleet, tmp_path) as edge:
        stopping = asyncio.create_task(machine.stop())
        await until(lambda: machine.state == "stopping")
        client = await RawClient.connect(edge)
        client.get()
        await until(lambda: edge.status().requests == 1)
        machine.stop_gate.set()
        assert json.loads((await client.answer())[2])["starts"] == 2
        await stopping


async def test_cordoned_created_and_foreign_machines_get_nothing(fleet: LocalFleet, tmp_path: Path) -> None:
    cordoned, created, elsewhere = fleet.add(whoami), fleet.add(whoami), fleet.add(whoami)
    await cordoned.start()
    cordoned.cordoned = True
    created.become("created")
    elsewhere.config = MachineConfig()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.answer())[0] == 503
        assert created.starts == elsewhere.starts == 0


async def test_a_machine_that_is_suspended_loses_its_connections(fleet: LocalFleet, tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()

    machine = fleet.add(raw(hold))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.head())[0] == 200
        machine.become("suspended")  # frozen: it closes nothing itself
        assert await client.rest() == b"1\r\na\r\n"
        assert edge.open_load() == 0


async def test_an_upload_larger_than_what_is_kept_survives_the_wake(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    machine = fleet.add(whoami)
    machine.gate.clear()
    size = 5 * 1024 * 1024
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"u" * size)
        await until(lambda: machine.starts == 1)
        machine.gate.set()
        status, _, body = await client.answer()
        assert (status, json.loads(body)["length"]) == (200, size)


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (2 * 1024 * 1024, 502)])
async def test_only_a_kept_body_is_sent_to_another_machine(
    fleet: LocalFleet, tmp_path: Path, size: int, status: int
) -> None:
    taken = asyncio.Event()

    async def take(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(size)
        taken.set()
        await reader.read()

    leaving, other = fleet.add(raw(take)), fleet.add(whoami)
    await leaving.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"u" * size)
        await taken.wait()
        await leaving.stop()
        answer = await client.answer()
        assert answer[0] == status
        assert other.starts == (1 if status == 200 else 0)


async def test_a_machine_that_appears_during_the_attempts_is_used(fleet: LocalFleet, tmp_path: Path) -> None:
    """A deploy cordons the old machine before the new one is uncordoned."""
    old, new = fleet.add(whoami), fleet.add(whoami)
    for machine in (old, new):
        await machine.start()
        machine.cordoned = True
    async with an_edge(fleet, tmp_path, retry_delay=10.0) as edge:
        client = await RawClient.connect(edge)
        client.get()
        await until(lambda: edge.status().requests == 1)
        new.cordoned = False
        fleet.signal.notify()
        assert json.loads((await client.answer())[2])["machine"] == new.id


async def test_queued_requests_are_served_in_the_order_they_came(fleet: LocalFleet, tmp_path: Path) -> None:
    served: list[str] = []
    gates = [asyncio.Event() for _ in range(5)]

    async def slow(request: web.Request) -> web.Response:
        served.append(request.path)
        await gates[int(request.path[1:])].wait()
        return web.Response(text=request.path)

    machine = fleet.add(answering(slow))
    machine.config = MachineConfig(services=(service(soft=1, hard=1),))
    async with an_edge(fleet, tmp_path) as edge:
        clients = [await RawClient.connect(edge) for _ in range(5)]
        for at, client in enumerate(clients):
            client.get(f"/{at}")
            await until(lambda at=at: edge.status().requests == at + 1)
            # Who comes in the moment in which a machine gets ready may be before those who wait for it.
            await until(lambda: len(served) == 1)
        for at, client in enumerate(clients):
            await until(lambda at=at: len(served) == at + 1)
            assert served[-1] == f"/{at}"
            gates[at].set()
            await client.answer()
