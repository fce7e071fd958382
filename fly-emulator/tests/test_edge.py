"""Requests through the edge: streaming both ways, headers, limits, retries, broken peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy import Edge
from fly_emulator.errors import EmulatorError
from fly_emulator.machine_config import MachineConfig, Port

from .edge_client import RawClient, an_edge, until, within
from .local_fleet import HOST, LocalFleet, answering, raw, service, whoami


@pytest.fixture
def fleet() -> LocalFleet:
    return LocalFleet()


@pytest.fixture
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


async def test_a_request_reaches_a_machine_with_flys_headers(
    fleet: LocalFleet, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    machine = fleet.add(whoami)
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        sent = {
            "Fly-Client-IP": "6.6.6.6",
            "X-Forwarded-For": "5.5.5.5",
            "Connection": "x-secret",
            "X-Secret": "1",
        }
        async with session.get(f"{edge.http_url}/a?b=c", headers=sent) as response:
            answer = await response.json()
            assert response.headers["server"].startswith("Fly/")
            assert response.headers["via"] == "1.1 fly.io"
            assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}-fra", response.headers["fly-request-id"])
            got = answer["headers"]
            assert answer["machine"] == machine.id
            assert answer["path"] == "/a?b=c"
            assert got["fly-client-ip"] == HOST
            assert got["x-forwarded-for"] == f"5.5.5.5, {HOST}, {HOST}"
            assert got["fly-region"] == "fra"
            assert got["fly-forwarded-port"] == got["x-forwarded-port"] == "80"
            assert got["fly-forwarded-proto"] == got["x-forwarded-proto"] == "http"
            assert got["fly-forwarded-ssl"] == got["x-forwarded-ssl"] == "off"
            assert got["via"] == "1.1 fly.io"
            assert got["fly-request-id"] == response.headers["fly-request-id"]
            assert "x-secret" not in got


async def test_the_first_chunk_arrives_before_the_second_is_written(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    more = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: 2\n\n")
        await response.write_eof()
        return response

    await fleet.add(answering(stream)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/stream")
        status, _ = await client.head()
        assert status == 200
        assert (
            await within(client.reader.readexactly(len(b"9\r\ndata: 1\n\n\r\n"))) == b"9\r\ndata: 1\n\n\r\n"
        )
        assert edge.open_load() == 1
        more.set()
        assert await within(client.reader.readuntil(b"0\r\n\r\n")) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        client.get("/again")  # the connection is kept
        assert (await client.head())[0] == 200
        client.close()


async def test_a_request_body_is_streamed_and_larger_than_what_is_kept(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    first = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        total = 0
        async for piece in request.content.iter_any():
            total += len(piece)
            first.set()
        return web.json_response({"total": total})

    await fleet.add(answering(take)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await within(first.wait())
        for _ in range(40):
            client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await within(client.writer.drain())
        client.send(b"0\r\n\r\nGET /pipelined HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, json.loads(body)) == (200, {"total": 3 + 40 * 65536})
        assert (await client.answer())[0] == 200
        client.close()


async def test_a_client_that_goes_away_cancels_the_request_at_the_machine(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        began.set()
        with contextlib.suppress(ConnectionError):
            assert not await reader.read(1)
        gone.set()

    await fleet.add(raw(watch)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        await within(began.wait())
        await client.head()
        client.close()
        await within(gone.wait())
        await until(lambda: edge.open_load() == 0)


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\nhalf", True),
    ],
)
async def test_a_machine_that_breaks_off_is_seen_by_the_client(
    fleet: LocalFleet, tmp_path: Path, answer: bytes, *, whole: bool
) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    await fleet.add(raw(half)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        status, headers = await client.head()
        rest = await client.rest()
        assert status == 200
        assert b"half" in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert (headers.get("connection") == "close") == whole
        assert bool(edge.logged("could not finish reading HTTP body")) != whole


async def test_a_machine_that_breaks_before_the_head_is_502(fleet: LocalFleet, tmp_path: Path) -> None:
    async def slam(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    await fleet.add(raw(slam)).start()
    async with an_edge(fleet, tmp_path, leaving_grace=0.01) as edge:
        client = await RawClient.connect(edge)
        client.get("/x")
        status, headers, body = await client.answer()
        assert (status, body, headers["fly-emulator-error"]) == (502, b"", "PU02")
        assert headers["fly-request-id"]
        assert edge.logged("[PU02] could not complete HTTP request to instance")
        client.get("/y")
        assert (await client.answer())[0] == 502


async def test_a_request_to_a_machine_that_is_just_stopping_is_served_by_another(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    arrived = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()

    leaving = fleet.add(raw(hang))
    other = fleet.add(whoami)
    await leaving.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        await within(arrived.wait())
        await leaving.stop()
        status, _, body = await client.answer()
        answer = json.loads(body)
        assert (status, answer["machine"], answer["length"]) == (200, other.id, 5)
        client.close()


async def test_refused_connections_end_in_pr03_after_the_attempts(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    await machine.start()
    await machine.kill()  # it says it is started, and nobody listens
    async with an_edge(fleet, tmp_path, max_attempts=3) as edge:
        client = await RawClient.connect(edge)
        client.get()
        status, headers, _ = await client.answer()
        assert (status, headers["fly-emulator-error"]) == (503, "PR03")
        assert edge.logged(
            "[PR03] could not find a good candidate within 3 attempts at load balancing. last "
        )
        assert edge.logged("[PC01] instance refused connection")


async def test_a_dead_pooled_connection_is_not_the_requests_problem(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    """The machine closes a kept connection in the moment the next request is sent on it."""
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")  # and no answer

    machine = fleet.add(raw(once))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        for _ in range(2):
            client.get()
            assert (await client.answer())[2] == b"ok"
        assert connections == 2
        client.close()


async def test_connections_are_pooled_by_requests_and_not_by_connections(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    peers: list[object] = []

    async def note(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(text="ok")

    machine = fleet.add(answering(note))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        for kind in ("requests", "requests", "connections", "connections"):
            machine.config = MachineConfig(services=(service(kind=kind),))
            client.get()
            await client.answer()
        client.close()
    assert peers[0] == peers[1] == peers[2]  # the pooled one is used up
    assert peers[3] != peers[2]


async def test_at_the_hard_limit_requests_queue_and_then_get_503(fleet: LocalFleet, tmp_path: Path) -> None:
    go = asyncio.Event()
    served: list[str] = []

    async def slow(request: web.Request) -> web.Response:
        served.append(request.path)
        await go.wait()
        return web.Response(text=request.path)

    machine = fleet.add(answering(slow))
    machine.config = MachineConfig(services=(service(soft=1, hard=1),))
    await machine.start()
    async with an_edge(fleet, tmp_path, queue_timeout=0.3) as edge:
        clients = [await RawClient.connect(edge) for _ in range(3)]
        clients[0].get("/0")
        await until(lambda: served == ["/0"])
        clients[1].get("/1")
        assert (await clients[1].answer())[0] == 503
        assert edge.logged("[PR04] could not find a good candidate within 1 attempts at load balancing")
        clients[2].get("/2")
        await until(lambda: edge.status().requests == 3)
        assert served == ["/0"]
        go.set()
        assert (await clients[0].answer())[2] == b"/0"
        assert (await clients[2].answer())[2] == b"/2"
        assert edge.open_load() == 0
        for client in clients:
            client.close()


async def test_a_slow_client_is_back_pressured(fleet: LocalFleet, tmp_path: Path) -> None:
    written = 0
    total = 64 * 1024 * 1024

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while written < total:
            await response.write(b"x" * 65536)
            written += 65536
        return response

    await fleet.add(answering(flood)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        await client.head()
        at = -1
        while at != written:  # it rests once every buffer on the way is full
            at = written
            await asyncio.sleep(0.1)
        assert 0 < written < total // 2
        size = len(await client.body({}))
        assert size == total
        client.close()


async def test_a_slow_machine_is_not_flooded(fleet: LocalFleet, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        await reader.readexactly(64 * 1024 * 1024)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    await fleet.add(raw(lazy)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (64 * 1024 * 1024))
        sent = 0

        async def upload() -> None:
            nonlocal sent
            while sent < 64 * 1024 * 1024:
                client.send(b"y" * 65536)
                await client.writer.drain()
                sent += 65536

        uploading = asyncio.create_task(upload())
        at = -1
        while at != sent:
            at = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < 32 * 1024 * 1024
        go.set()
        await within(uploading)
        assert (await client.head())[0] == 204
        client.close()


async def test_a_half_closed_client_counts_as_gone(fleet: LocalFleet, tmp_path: Path) -> None:
    began = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        await reader.read()

    await fleet.add(raw(wait)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        await within(began.wait())
        client.writer.write_eof()
        assert await client.rest() == b""
        await until(lambda: edge.open_load() == 0)


async def test_100_continue_and_head_and_http_1_0(fleet: LocalFleet, tmp_path: Path) -> None:
    await fleet.add(whoami).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await client.head())[0] == 100
        client.send(b"hi")
        status, _, body = await client.answer()
        assert (status, json.loads(body)["length"]) == (200, 2)
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers = await client.head()
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        client.send(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        status, headers = await client.head()
        assert (status, headers["connection"], headers["via"]) == (200, "close", "1.0 fly.io")
        assert await client.rest()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_http_is_refused(
    fleet: LocalFleet, tmp_path: Path, sent: bytes, status: int
) -> None:
    await fleet.add(whoami).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(sent)
        assert (await client.head())[0] == status


async def test_a_port_in_use_is_named_with_a_hint(fleet: LocalFleet, tmp_path: Path) -> None:
    async with an_edge(fleet, tmp_path) as edge:
        taken = edge.addresses[80][1]
        second = Edge(
            fleet,
            host=HOST,
            http_port=taken,
            https_port=None,
            options=EdgeOptions(),
            log=print,
            state_dir=tmp_path,
        )
        with pytest.raises(EmulatorError, match=str(taken)) as caught:
            await second.start()
        assert caught.value.hint


async def test_a_tcp_service_is_forwarded_as_bytes_with_half_closes(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        await writer.drain()

    machine = fleet.add(raw(reverse))
    machine.config = MachineConfig(services=(service(ports=(Port(port=5),), kind="connections"),))
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge, 5)
        client.send(b"abc")
        client.writer.write_eof()
        assert await client.rest() == b"cba"
        assert machine.starts == 1
        await until(lambda: edge.open_load() == 0)


async def test_pristine_and_configured_response_headers(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    response = {"pristine": True, "headers": {"X-New": "1", "Content-Type": False, "X-Many": ["a", "b"]}}
    port = Port(port=80, handlers=("http",), http_options={"response": response})
    machine.config = MachineConfig(services=(service(ports=(port,)),))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        _, headers, _ = await client.answer()
        assert "fly-request-id" not in headers
        assert "via" not in headers
        assert "content-type" not in headers
        assert (headers["x-new"], headers["x-many"]) == ("1", "b")


async def test_idle_timeout_ends_a_silent_answer(fleet: LocalFleet, tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()

    machine = fleet.add(raw(silent))
    port = Port(port=80, handlers=("http",), http_options={"idle_timeout": 0.05})
    machine.config = MachineConfig(services=(service(ports=(port,)),))
    await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.head())[0] == 200
        assert await client.rest() == b""


async def test_faults_cut_a_share_of_the_connections(fleet: LocalFleet, tmp_path: Path) -> None:
    await fleet.add(whoami).start()
    async with an_edge(fleet, tmp_path) as edge:

        async def sizes() -> list[int]:
            edge.faults.cut(0.5, 200, seed=7)
            found: list[int] = []
            for _ in range(20):
                client = await RawClient.connect(edge)
                client.get("/", "Connection: close")
                found.append(len(await client.rest()))
                client.close()
            return found

        first = await sizes()
        cut = [size for size in first if size <= 200]
        assert 0 < len(cut) < 20
        assert len(set(cut)) > 1
        assert edge.status().cuts == len(cut)
        assert [size for size in await sizes() if size <= 200] == cut
        edge.faults.off()
        client = await RawClient.connect(edge)
        client.get()
        assert (await client.answer())[0] == 200
        client.close()


async def test_a_tcp_service_without_machines_is_cut_with_pr01(fleet: LocalFleet, tmp_path: Path) -> None:
    machine = fleet.add(whoami)
    machine.config = MachineConfig(services=(service(ports=(Port(port=5),), autostart=False),))
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge, 5)
        assert await client.rest() == b""
        assert edge.logged("[PR01] no known healthy instances found for route tcp/5")
