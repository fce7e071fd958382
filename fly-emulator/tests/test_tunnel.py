"""WebSockets through the edge, close frames between frames, and TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from hypothesis import given, settings
from hypothesis import strategies as st

from fly_emulator.edge.certificate import authority, server_context
from fly_emulator.edge.frames import FrameTracker, close_frame
from fly_emulator.machine_config import MachineConfig, Port

from .edge_client import RawClient, an_edge, until, within
from .local_fleet import LocalFleet, answering, raw, service, whoami

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.fixture
def fleet() -> LocalFleet:
    return LocalFleet()


async def echo(request: web.Request) -> web.StreamResponse:
    if request.headers.get("upgrade") is None:
        return web.Response(text="no socket")
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def frame(payload: bytes, *, fin: bool = True, opcode: int = 2) -> bytes:
    first = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 65536:
        return first + b"\x7e" + len(payload).to_bytes(2) + payload
    return first + b"\x7f" + len(payload).to_bytes(8) + payload


async def test_messages_of_all_sizes_pass_both_ways(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(answering(echo))
    async with an_edge(fleet, tmp_path) as edge, aiohttp.ClientSession() as session:
        async with session.ws_connect(edge.http_url, max_msg_size=0) as socket:
            await socket.send_str("hello")
            assert await within(socket.receive_str()) == "hello"
            for size in (0, 125, 126, 65535, 65536, 3_000_000):
                data = os.urandom(size)
                await socket.send_bytes(data)
                assert await within(socket.receive_bytes()) == data
            assert edge.load(machine.id) == 1
            assert edge.status().websockets == {machine.id: 1}
        await until(lambda: edge.load(machine.id) == 0)


@pytest.mark.parametrize("counts", [True, False])
async def test_whether_an_open_websocket_is_load(fleet: LocalFleet, tmp_path: Path, *, counts: bool) -> None:
    machine = fleet.add(answering(echo))
    async with (
        an_edge(fleet, tmp_path, websocket_is_load=counts) as edge,
        aiohttp.ClientSession() as session,
        session.ws_connect(edge.http_url) as socket,
    ):
        await socket.send_str("x")
        await within(socket.receive_str())
        assert edge.load(machine.id) == int(counts)


async def test_a_refused_upgrade_is_an_ordinary_answer(fleet: LocalFleet, tmp_path: Path) -> None:
    await fleet.add(whoami).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", *UPGRADE)
        status, headers, _ = await client.answer()
        assert status == 200
        assert "upgrade" not in headers.get("connection", "").lower()
        client.get("/again")
        assert (await client.answer())[0] == 200


async def test_a_replayed_upgrade_is_made_by_the_target(fleet: LocalFleet, tmp_path: Path) -> None:
    target = fleet.add(answering(echo))

    async def away(_request: web.Request) -> web.Response:
        return web.Response(headers={"fly-replay": f"instance={target.id}"})

    await fleet.add(answering(away)).start()
    async with (
        an_edge(fleet, tmp_path) as edge,
        aiohttp.ClientSession() as session,
        session.ws_connect(edge.http_url) as socket,
    ):
        await socket.send_str("there")
        assert await within(socket.receive_str()) == "there"
        assert edge.load(target.id) == 1


async def test_a_client_that_vanishes_ends_the_machines_side_and_the_other_way(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    ended = asyncio.Event()

    async def side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        if await reader.read(1) == b"":
            ended.set()

    await fleet.add(raw(side)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", *UPGRADE)
        assert (await client.head())[0] == 101
        client.close()
        await within(ended.wait())
        client = await RawClient.connect(edge)
        client.get("/", *UPGRADE)
        assert (await client.head())[0] == 101
        client.send(b"x")  # it leaves at the first byte
        assert await client.rest() == b""
        await until(lambda: edge.open_load() == 0)


async def test_the_close_frame_waits_for_the_end_of_a_frame(fleet: LocalFleet, tmp_path: Path) -> None:
    go = asyncio.Event()
    got: list[bytes] = []
    whole = frame(b"a" * 300)

    async def side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        writer.write(whole + whole[:100])
        await go.wait()
        writer.write(whole[100:] + frame(b"too late"))
        while data := await reader.read(100):
            got.append(data)

    machine = fleet.add(raw(side))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", *UPGRADE)
        await client.head()
        await within(client.reader.readexactly(len(whole) + 100))
        draining = asyncio.create_task(edge.drain_machine(machine.id))
        await until(lambda: edge.status().draining == [machine.id])
        go.set()
        expected = whole[100:] + close_frame(1001)
        assert await within(client.reader.readexactly(len(expected))) == expected
        client.send(b"\x88\x82mask" + bytes(a ^ b for a, b in zip(b"\x03\xe9", b"mask", strict=False)))
        client.close()
        await within(draining)
        await until(lambda: b"".join(got).startswith(b"\x88\x82mask"))
        edge.undrain(machine.id)


async def test_a_real_client_sees_1001_when_its_machine_drains(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(answering(echo))
    async with an_edge(fleet, tmp_path) as edge, aiohttp.ClientSession() as session:
        async with session.ws_connect(edge.http_url) as socket:
            await socket.send_str("x")
            await within(socket.receive())
            draining = asyncio.create_task(edge.drain_machine(machine.id))
            message = await within(socket.receive())
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await within(draining)


@settings(max_examples=200, deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=300) | st.just(b"z" * 70_000), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 400), min_size=1),
)
def test_frames_end_where_they_end_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    frames = [frame(payload) for payload in payloads]
    wire = b"".join(frames)
    ends = {sum(len(one) for one in frames[: at + 1]) for at in range(len(frames))}
    tracker, at, turn = FrameTracker(), 0, 0
    seen: set[int] = set()
    while at < len(wire):
        step = cuts[turn % len(cuts)]
        at += tracker.feed(wire[at : at + step], one=True)
        turn += 1
        if tracker.at_boundary:
            seen.add(at)
    assert seen == ends
    assert not tracker.closed
    tracker.feed(close_frame(1000))
    assert tracker.closed


async def test_tls_with_a_certificate_made_here(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    secure = Port(port=443, handlers=("http", "tls"))
    plain = Port(port=80, handlers=("http",), force_https=True)
    machine.config = MachineConfig(services=(service(ports=(plain, secure)),))
    await machine.start()
    async with an_edge(fleet, tmp_path, https=True) as edge, aiohttp.ClientSession() as session:
        trust = ssl.create_default_context(cafile=authority(tmp_path))
        assert edge.https_url is not None
        async with session.get(f"{edge.https_url}/a", ssl=trust) as response:
            headers = (await response.json())["headers"]
            assert headers["x-forwarded-proto"] == headers["fly-forwarded-proto"] == "https"
            assert headers["fly-forwarded-port"] == "443"
            assert headers["x-forwarded-ssl"] == "on"
        async with session.get(f"{edge.http_url}/a?b", allow_redirects=False) as response:
            assert response.status == 301
            assert response.headers["location"] == f"{edge.https_url}/a?b"
        async with session.post(f"{edge.http_url}/a", data=b"x" * 100, allow_redirects=False) as response:
            assert response.status == 301


async def test_websockets_over_tls(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(answering(echo))
    async with an_edge(fleet, tmp_path, https=True) as edge, aiohttp.ClientSession() as session:
        trust = ssl.create_default_context(cafile=authority(tmp_path))
        async with session.ws_connect(edge.https_url or "", ssl=trust) as socket:
            await socket.send_bytes(b"z" * 1_000_000)
            assert len(await within(socket.receive_bytes())) == 1_000_000
        await until(lambda: edge.load(machine.id) == 0)


async def test_without_a_tls_listener_nothing_is_redirected(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    plain = Port(port=80, handlers=("http",), force_https=True)
    machine.config = MachineConfig(services=(service(ports=(plain,)),))
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.answer())[0] == 200


def test_the_certificate_is_made_once_and_again_when_it_does_not_fit(tmp_path: Path) -> None:
    server_context(tmp_path, "one")
    made = authority(tmp_path).read_bytes()
    server_context(tmp_path, "one")
    assert authority(tmp_path).read_bytes() == made
    (tmp_path / "tls" / "one.pem").write_text("broken")
    server_context(tmp_path, "one")
    assert authority(tmp_path).read_bytes() != made
    assert (tmp_path / "tls" / "one.pem").stat().st_mode & 0o077 == 0
