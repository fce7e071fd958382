"""What strangers, and users who mean harm, do to a server: each attack is a loop that ends with its task."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Attack: TypeAlias = Callable[["Target"], Awaitable[None]]

PAUSE = 0.02
"""Between two goes of one attacker: the attackers share the machine with what they attack."""


class Target:
    """The server's address, and the header of a user whose token is valid."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self.authorization = headers["Authorization"]

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Streams]:
        """Connect, and drop the connection at the end."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def over_and_over(self, go: Callable[[Streams], Awaitable[None]]) -> None:
        """Connect and go, for ever; being cut or refused ends one go."""
        while True:
            with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                async with self.connect() as streams:
                    await go(streams)
            await asyncio.sleep(PAUSE)


async def _until_cut(streams: Streams) -> None:
    await streams[0].read()


async def idle(target: Target) -> None:
    """Connect and send nothing."""
    await target.over_and_over(_until_cut)


async def half_heads(target: Target) -> None:
    """Send half a head, and later another."""

    async def go(streams: Streams) -> None:
        streams[1].write(b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX: a")
        async with asyncio.timeout(0.3):
            await streams[0].read()

    await target.over_and_over(go)


async def drops(target: Target) -> None:
    """Send a head byte by byte."""

    async def go(streams: Streams) -> None:
        while not streams[0].at_eof():
            streams[1].write(b"G")
            await streams[1].drain()
            await asyncio.sleep(0.1)

    await target.over_and_over(go)


async def slow_bodies(target: Target) -> None:
    """Announce a body, as a user, and send it byte by byte."""

    async def go(streams: Streams) -> None:
        head = f"PUT /v1/me/profile HTTP/1.1\r\nHost: x\r\nAuthorization: {target.authorization}\r\n"
        streams[1].write(head.encode() + b"Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
        while not streams[0].at_eof():
            streams[1].write(b" ")
            await streams[1].drain()
            await asyncio.sleep(0.1)

    await target.over_and_over(go)


async def guesses(target: Target) -> None:
    """Make up tokens."""

    async def go(streams: Streams) -> None:
        token = target.authorization[:-20] + base64.urlsafe_b64encode(uuid4().bytes)[:20].decode()
        streams[1].write(f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        await streams[0].readuntil(b"\r\n\r\n")

    await target.over_and_over(go)


async def headers(target: Target) -> None:
    """Send more headers than anybody needs."""

    async def go(streams: Streams) -> None:
        streams[1].write(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 8000)
        await _until_cut(streams)

    await target.over_and_over(go)


async def chunks(target: Target) -> None:
    """Send a body in chunks of one byte."""

    async def go(streams: Streams) -> None:
        streams[1].write(b"PUT /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        streams[1].write(b"1\r\nx\r\n" * 20_000)
        async with asyncio.timeout(1):
            await _until_cut(streams)

    await target.over_and_over(go)


async def pipelines(target: Target) -> None:
    """Send many requests without waiting for an answer, and read none."""

    async def go(streams: Streams) -> None:
        streams[1].transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue] - a read transport
        streams[1].write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        await asyncio.sleep(0.3)

    await target.over_and_over(go)


async def pings(target: Target) -> None:
    """Open a socket as a user, ping and subscribe."""
    key = base64.b64encode(bytes(16)).decode()
    head = (
        f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {target.authorization}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
    subscribe = f'{{"type":"subscribe","session":"{uuid4()}"}}'.encode()

    async def go(streams: Streams) -> None:
        streams[1].write(head)
        await streams[0].readuntil(b"\r\n\r\n")
        frames = bytes([0x81, 0x80 | len(subscribe)]) + bytes(4) + subscribe
        streams[1].write((frames + b"\x89\x80\0\0\0\0") * 1500)
        async with asyncio.timeout(1):
            await _until_cut(streams)

    await target.over_and_over(go)


async def readiness(target: Target) -> None:
    """Ask for what needs no token and looks at the database."""

    async def go(streams: Streams) -> None:
        for _ in range(50):
            streams[1].write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            await streams[0].readuntil(b"}")

    await target.over_and_over(go)


EVERYTHING: dict[Attack, int] = {
    idle: 300,
    half_heads: 20,
    drops: 50,
    slow_bodies: 20,
    guesses: 4,
    headers: 2,
    chunks: 2,
    pipelines: 3,
    pings: 3,
    readiness: 2,
}
"""Each attack, and how many carry it out at once."""


@asynccontextmanager
async def under(target: Target, attacks: dict[Attack, int]) -> AsyncGenerator[None]:
    """Attack for as long as the block lasts."""
    tasks = [asyncio.ensure_future(attack(target)) for attack, count in attacks.items() for _ in range(count)]
    try:
        yield
        for task in tasks:
            assert not task.done(), f"an attacker gave up: {task.exception()!r}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
