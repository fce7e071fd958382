"""What strangers can do to a connection before anybody asks who they are, and readers who never read."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import msgspec
import pytest
import uvloop
from starlette.responses import Response

from agent_backend.settings import Settings
from agent_backend.telemetry import metrics
from agent_backend.web import connections, requests
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.websocket import SOCKETS

from .serving import app_of, headers_for, serving, settings_for

PATIENCE = 10.0
READ = 256 * 1024
"""What one read takes off a socket."""
PONG = b'\x81\x0f{"type":"pong"}'


class Note(msgspec.Struct, forbid_unknown_fields=True):
    content: str


@operation("PUT", "/note", body=Note, auth=False, replies={200: Note})
async def put_note(call: Call[Note, None]) -> Response:
    return reply(call.body)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


@pytest.fixture
def left() -> asyncio.Queue[str]:
    """Return where `/slow` says that it has seen its client go."""
    return asyncio.Queue()


@pytest.fixture
async def url(settings: Settings, left: asyncio.Queue[str]) -> AsyncGenerator[str]:
    @operation("GET", "/slow", auth=False)
    async def slow(call: Call[None, None]) -> Response:
        while (await call.request.receive())["type"] != "http.disconnect":
            pass
        left.put_nowait("slow")
        return reply(None)

    async with serving(app_of(settings, (put_note, slow), SOCKETS), settings) as base:
        yield base


class Wire:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        self.reader = reader
        self.writer = writer
        writer.write(first)

    async def send_until_cut(self, piece: bytes, most: int) -> int:
        """Send a piece over and over until the server hangs up; return the bytes it took."""
        sent = 0
        try:
            async with asyncio.timeout(PATIENCE):
                while sent < most and not self.reader.at_eof():
                    self.writer.write(piece)
                    await self.writer.drain()
                    sent += len(piece)
        except ConnectionError:
            pass
        return sent

    async def rest(self) -> bytes:
        """Return what comes until the server hangs up."""
        received = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while piece := await self.reader.read(READ):
                    received += piece
            except ConnectionError:
                pass
        return received

    async def problem(self) -> int:
        """Return the status of the problem document that is the answer before the server hangs up."""
        head, _, body = (await self.rest()).partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        problem = json.loads(body)
        assert b"content-type: application/problem+json" in head
        assert b"connection: close" in head
        assert problem["status"] == status
        assert problem["request_id"].encode() in head
        return status


Connect: TypeAlias = Callable[[bytes], Awaitable[Wire]]


@pytest.fixture
async def connect(url: str) -> AsyncGenerator[Connect]:
    wires: list[Wire] = []

    async def open_wire(first: bytes) -> Wire:
        parts = urlsplit(url)
        wires.append(Wire(*await asyncio.open_connection(parts.hostname, parts.port), first))
        return wires[-1]

    yield open_wire
    for wire in wires:
        wire.writer.transport.abort()


HEADER = b"X: " + b"a" * 60_000 + b"\r\n"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /slow HTTP/1.1\r\n", HEADER),
        (b"GET /slow HTTP/1.1\r\nX: ", b"a" * 60_000),
        (b"GET /slow HTTP/1.1\r\n", b"a" * 60_000),
        (b"PUT /note HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", HEADER),
        (b"PUT /note HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", b"a" * 60_000),
    ],
    ids=["headers", "value", "name", "trailers", "chunk extension"],
)
async def test_what_has_no_end_is_cut(first: bytes, piece: bytes, connect: Connect) -> None:
    wire = await connect(first)
    assert await wire.send_until_cut(piece, 100 * READ) < 60 * READ  # kernels buffer megabytes


async def test_a_head_beyond_the_limit_is_a_problem(connect: Connect) -> None:
    before = metrics.http_requests["none", 431]
    wire = await connect(b"GET /slow HTTP/1.1\r\n" + HEADER * 2)
    assert await wire.problem() == 431
    assert metrics.http_requests["none", 431] == before + 1


async def test_a_long_head_within_the_limit_is_read(connect: Connect) -> None:
    wire = await connect(b"GET /nothing HTTP/1.1\r\nConnection: close\r\n" + HEADER[:50_000])
    wire.writer.write(b"\r\n\r\n")
    assert b" 404 " in await wire.rest()


async def test_a_large_body_is_no_long_head(connect: Connect) -> None:
    body = b'{"content": "' + b"x" * 300_000 + b'"}'
    head = b"PUT /note HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    plain = await connect(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 200 " in await plain.rest()
    chunked = await connect(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body)
    chunked.writer.write(b"\r\n0\r\n\r\n")
    assert b" 200 " in await chunked.rest()


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /slow HTTP/9.9\r\n\r\n", 400),
        (b"PUT /note HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", 400),
    ],
)
async def test_what_is_no_http_is_a_problem_too(first: bytes, status: int, connect: Connect) -> None:
    assert await (await connect(first)).problem() == status


async def test_a_head_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    assert await (await connect(b"GET /slow HTTP/1.1\r\nX: a")).problem() == 408
    assert await (await connect(b"")).rest() == b""
    assert await (await connect(b"\r\n")).rest() == b""


async def test_a_request_that_is_served_has_all_the_time(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    served = await connect(b"GET /slow HTTP/1.1\r\n")
    served.writer.write(b"\r\n")
    assert await (await connect(b"")).rest() == b""  # one that came later is gone
    assert not served.reader.at_eof()


async def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.05)
    head = b"PUT /note HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
    assert await (await connect(head)).problem() == 408


async def test_requests_behind_one_that_hangs_are_counted(
    connect: Connect,
) -> None:
    wire = await connect(b"GET /slow HTTP/1.1\r\n\r\n")
    assert await wire.send_until_cut(b"GET /slow HTTP/1.1\r\n\r\n" * 1000, 100 * READ) < 60 * READ
    assert await wire.rest() == b""


async def test_a_request_with_another_behind_it_hears_that_its_client_has_gone(
    left: asyncio.Queue[str], connect: Connect
) -> None:
    wire = await connect(b"GET /slow HTTP/1.1\r\n\r\n" * 2)
    wire.writer.close()
    async with asyncio.timeout(PATIENCE):
        assert await left.get() == "slow"


# --- WebSocket -------------------------------------------------------------------------------------


def handshake(settings: Settings, *more: str) -> bytes:
    lines = (
        "GET /v1/stream HTTP/1.1",
        "Host: x",
        *(f"{name}: {value}" for name, value in headers_for(settings).items()),
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + base64.b64encode(bytes(16)).decode(),
        *more,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a client's final frame, masked with zeros."""
    length = struct.pack("!BH", 254, len(payload)) if len(payload) > 125 else bytes([128 | len(payload)])
    return bytes([128 | opcode]) + length + bytes(4) + payload


async def opened(wire: Wire) -> Wire:
    assert b" 101 " in await wire.reader.readuntil(b"\r\n\r\n")
    return wire


@pytest.mark.parametrize(
    "more",
    [
        ["X: " + "a" * 10_000],
        ["Content-Length: 5"],
        ["Transfer-Encoding: chunked"],
    ],
    ids=["long header", "body", "chunks"],
)
async def test_a_handshake_that_cannot_be_read_is_answered(
    more: list[str], settings: Settings, connect: Connect
) -> None:
    wire = await connect(handshake(settings, *more) + b"5\r\nhello\r\n0\r\n\r\n")
    assert await wire.problem() == 400


async def test_who_reads_no_pongs_is_cut(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, connect: Connect
) -> None:
    monkeypatch.setattr(connections, "MAX_UNREAD_BYTES", 64 * 1024)
    wire = await opened(await connect(handshake(settings)))
    wire.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue] - a read transport
    piece = frame(9, b"x" * 125) * 2000
    assert await wire.send_until_cut(piece, 200 * READ) < 150 * READ


async def test_who_reads_its_pongs_may_ping_a_lot_and_is_cut_when_it_does_nothing_else(
    settings: Settings, connect: Connect
) -> None:
    wire = await opened(await connect(handshake(settings)))
    wire.writer.write(frame(9, b"x" * 125) * connections.PINGS_BURST)
    async with asyncio.timeout(PATIENCE):
        await wire.reader.readexactly(127 * connections.PINGS_BURST)
    assert await wire.send_until_cut(frame(9, b"x" * 125) * 500, 100 * READ) < 60 * READ


def test_a_frame_that_breaks_the_rules_behind_a_bad_one_is_no_fault_of_ours(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics.http_requests["stream", 500]
    uvloop.run(_break_the_rules(settings))  # as served: asyncio's own loop closes in another order
    assert metrics.http_requests["stream", 500] == before
    assert '"level":"error"' not in capsys.readouterr().err


async def _break_the_rules(settings: Settings) -> None:
    async with serving(app_of(settings, (), SOCKETS), settings) as url:
        parts = urlsplit(url)
        wire = await opened(
            Wire(*await asyncio.open_connection(parts.hostname, parts.port), handshake(settings))
        )
        wire.writer.write(frame(1, b'{"type":"ping"}'))
        assert await wire.reader.readexactly(len(PONG)) == PONG
        wire.writer.write(frame(1, b"nonsense") * 2 + frame(1, b"\xff"))
        assert b"\x03\xef" in await wire.rest()  # 1007: not UTF-8
        wire.writer.transport.abort()
