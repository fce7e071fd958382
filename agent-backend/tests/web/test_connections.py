"""How many connections may be open, how slow they may be, and requests that can be read in two ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from starlette.responses import Response

from agent_backend.settings import Settings
from agent_backend.web import connections, requests
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.websocket import SOCKETS

from .serving import app_of, serving, settings_for
from .test_attack import PATIENCE, READ, Wire, handshake, opened

MOST = 16
"""The least that MAX_CONNECTIONS may be."""


class Note(msgspec.Struct, forbid_unknown_fields=True):
    content: str


@operation("PUT", "/note", body=Note, auth=False, replies={200: Note})
async def put_note(call: Call[Note, None]) -> Response:
    return reply(call.body)


@operation("GET", "/quick", auth=False, replies={200: str})
async def quick(_call: Call[None, None]) -> Response:
    return reply("ok")


@operation("GET", "/slow", auth=False, replies={200: str})
async def slow(call: Call[None, None]) -> Response:
    while (await call.request.receive())["type"] != "http.disconnect":
        pass
    return reply("gone")


@operation("GET", "/large", auth=False, replies={200: str})
async def large(_call: Call[None, None]) -> Response:
    return reply("x" * 20_000_000)  # more than kernels buffer


@asynccontextmanager
async def connecting(settings: Settings) -> AsyncGenerator[Callable[[bytes], Awaitable[Wire]]]:
    wires: list[Wire] = []
    async with serving(app_of(settings, (put_note, quick, slow, large), SOCKETS), settings) as url:
        parts = urlsplit(url)

        async def connect(first: bytes) -> Wire:
            wires.append(Wire(*await asyncio.open_connection(parts.hostname, parts.port), first))
            return wires[-1]

        try:
            yield connect
        finally:
            for wire in wires:
                wire.writer.transport.abort()


async def answered(wire: Wire) -> int:
    """Return the status of the next answer; it has a body of known length."""
    async with asyncio.timeout(PATIENCE):
        head = await wire.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await wire.reader.readexactly(length)
    return int(head.split(b" ")[1])


QUICK = b"GET /quick HTTP/1.1\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\n\r\n"


async def test_of_too_many_connections_the_one_that_waits_longest_goes(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path, MAX_CONNECTIONS=str(MOST))) as connect:
        served = await connect(SLOW)
        half = await connect(b"GET /quick HTTP/1.1\r\nX: a")
        kept = await connect(QUICK)
        assert await answered(kept) == 200
        idle = [await connect(QUICK) for _ in range(MOST - 3)]
        assert [await answered(each) for each in idle] == [200] * len(idle)
        newest = await connect(QUICK)
        assert await answered(newest) == 200
        assert await half.problem() == 503  # it waits longest: its head is not complete
        kept.writer.write(QUICK)
        assert await answered(kept) == 200  # and so it waits from now on
        await answered(await connect(QUICK))
        assert await idle[0].rest() == b""
        kept.writer.write(QUICK)
        assert await answered(kept) == 200
        assert not served.reader.at_eof()


async def test_who_is_served_is_not_closed_for_somebody_else(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path, MAX_CONNECTIONS=str(MOST))) as connect:
        first = await connect(QUICK)
        await answered(first)
        served = [await connect(SLOW) for _ in range(MOST)]
        assert await first.rest() == b""
        assert await (await connect(QUICK)).rest() == b""
        assert not any(each.reader.at_eof() for each in served)


async def test_one_address_keeps_only_so_many_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING_PER_PEER", 3)
    async with connecting(settings_for(tmp_path, LIMIT_FACTOR="1")) as connect:
        wires = [await connect(b"") for _ in range(5)]
        assert [await each.rest() for each in wires[:2]] == [b"", b""]
        wires[2].writer.write(QUICK)
        assert await answered(wires[2]) == 200


async def test_the_proxy_is_one_peer_for_all_and_may_keep_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING_PER_PEER", 3)
    settings = settings_for(tmp_path, LIMIT_FACTOR="1", TRUST_FLY_CLIENT_IP="on")
    async with connecting(settings) as connect:
        wires = [await connect(b"") for _ in range(10)]
        for each in wires:
            each.writer.write(QUICK)
        assert [await answered(each) for each in wires] == [200] * 10


async def test_headers_are_counted(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path)) as connect:
        head = b"GET /quick HTTP/1.1\r\n"
        assert await answered(await connect(head + b"a: b\r\n" * 100 + b"\r\n")) == 200
        assert await (await connect(head + b"a: b\r\n" * 101 + b"\r\n")).problem() == 431


async def test_chunks_of_a_byte_are_counted(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path)) as connect:
        head = b"PUT /note HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire = await connect(head)
        sent = await wire.send_until_cut(b"1\r\nx\r\n" * 1000, 100 * READ)
        assert sent < 60 * READ
        text = b'{"content": "' + b"x" * 5000 + b'"}'
        few = await connect(head + b"".join(b"1\r\n%c\r\n" % each for each in text) + b"0\r\n\r\n")
        assert await answered(few) == 200


async def test_parts_of_a_frame_are_counted(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    async with connecting(settings) as connect:
        wire = await opened(await connect(handshake(settings)))
        wire.writer.write(b"\x01\x80\0\0\0\0")  # a text that goes on
        empty = b"\x00\x80\0\0\0\0"
        assert await wire.send_until_cut(empty * 1000, 100 * READ) < 60 * READ


async def test_a_body_has_to_come_at_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "GRACE_SECONDS", 0.05)
    head = b"PUT /note HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    async with connecting(settings_for(tmp_path)) as connect:
        assert await (await connect(head % 200_000 + b"{")).problem() == 408
        # What has come buys time: this one has two hundred seconds.
        fast = await connect(head % 200_013 + b'{"content":"' + b"x" * 199_999)
        for _ in range(2):
            assert await (await connect(head % 200_000 + b"{")).problem() == 408
        fast.writer.write(b'"}')
        assert await answered(fast) == 200


async def test_who_does_not_read_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.05)
    async with connecting(settings_for(tmp_path)) as connect:
        wire = await connect(b"")
        wire.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue] - a read transport
        wire.writer.write(b"GET /large HTTP/1.1\r\n\r\n")
        # While it reads nothing it cannot see its end; others can: its place is free again.
        for _ in range(4):
            monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
            assert await (await connect(b"")).rest() == b""
        wire.writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]
        assert len(await wire.rest()) < 20_000_000


async def test_who_reads_slowly_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.4)
    async with connecting(settings_for(tmp_path)) as connect:
        wire = await connect(b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n")
        received, began = 0, asyncio.get_running_loop().time()
        async with asyncio.timeout(PATIENCE):
            while piece := await wire.reader.read(READ):
                received += len(piece)
                await asyncio.sleep(0.015)  # an uplink of its own
        assert received > 20_000_000
        assert asyncio.get_running_loop().time() - began > 2 * 0.4


SMUGGLED = b"GET /slow HTTP/1.1\r\n\r\n"
HEAD = b"PUT /note HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length: 2, 30\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length: +2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length: 0x2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Content-Length : 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n" + SMUGGLED,
        HEAD + b"X: a\r\n b: c\r\n\r\n" + SMUGGLED,  # obs-fold
        b"PUT /note HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}" + SMUGGLED,  # bare LF
        HEAD + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED,  # bare CR
        HEAD + b"X: a\0b\r\n\r\n" + SMUGGLED,
        b" " + HEAD + b"\r\n" + SMUGGLED,
    ],
)
async def test_what_two_readers_could_read_two_ways_is_refused(request_: bytes, tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path)) as connect:
        wire = await connect(request_)
        received = await wire.rest()
    # Where the head was taken and the body is at fault, the connection is closed without an answer.
    assert not received or received.startswith(b"HTTP/1.1 4"), received[:300]
    assert received.count(b"HTTP/1.1 ") <= 1


async def test_http_1_0_gets_one_answer(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path)) as connect:
        wire = await connect(b"GET /quick HTTP/1.0\r\n\r\n" + QUICK)
        received = await wire.rest()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_compressed_body_is_refused(tmp_path: Path) -> None:
    async with connecting(settings_for(tmp_path)) as connect:
        for encoding in (b"gzip", b"deflate", b"br", b"identity, gzip"):
            wire = await connect(HEAD + b"Content-Encoding: " + encoding + b"\r\nContent-Length: 2\r\n\r\n{}")
            assert await answered(wire) == 415
