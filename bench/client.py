"""The load: turns over raw sockets, so cheap that what is measured is the server.

A delta's text is the time the model wrote it at (the emulator's `stamp`), and all clocks here are this
machine's monotonic clock: the delay of every single delta is known, and that none was lost or doubled.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple, cast

_STAMP = re.compile(rb"@(\d{19}) ")
_STAMP_LENGTH = 21
_END = b"0\r\n\r\n"
_ENDED_WELL = (b"RUN_FINISHED", b"message_stop")


class Failed(Exception):
    """A turn did not come as it should have: nothing measured in this run counts."""


class Request(NamedTuple):
    """One turn as bytes, and the deltas that must come."""

    data: bytes
    deltas: int


class Seen(NamedTuple):
    """What a client saw of one turn: nanoseconds from sending to the first delta, and each delta's delay."""

    first: int
    delays: list[int]


class Connection(asyncio.Protocol):
    """One keep-alive connection that reads one chunked answer at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._delays: list[int] = []
        self._tail = b""
        self._head = b""
        self._first = 0
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the turn under way."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(Failed(f"the connection closed in mid-turn ({exc!r})"))

    def data_received(self, data: bytes) -> None:
        """Count what has arrived; a stamp may be cut in two by the network."""
        now = time.monotonic_ns()
        if not self._head:
            self._head = data[:4096]
        joined = self._tail + data
        end = 0
        for match in _STAMP.finditer(joined):
            self._delays.append(now - int(match[1]))
            end = match.end()
        if self._delays and not self._first:
            self._first = now
        self._tail = joined[max(end, len(joined) - _STAMP_LENGTH) :]
        self._ended = self._ended or any(name in joined for name in _ENDED_WELL)
        refused = not self._head.startswith(b"HTTP/1.1 200")
        if (refused or joined.endswith(_END)) and self._done is not None and not self._done.done():
            if self._ended:
                self._done.set_result(None)
            else:
                self._done.set_exception(Failed(f"not a completed turn: {self._head!r} ... {joined!r}"))

    async def turn(self, request: Request) -> Seen:
        """Send a turn and read it to its end. Raises Failed."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._delays, self._tail, self._head, self._first = [], b"", b"", 0
        self._ended = False
        sent = time.monotonic_ns()
        self._transport.write(request.data)
        await self._done
        if len(self._delays) != request.deltas:
            raise Failed(f"{len(self._delays)} deltas came instead of {request.deltas}")
        return Seen(self._first - sent, self._delays)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def connect(port: int) -> Connection:
    """Open a connection to a server on this machine."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return protocol


async def drive(port: int, queues: list[list[Request]], stagger: float) -> list[Seen]:
    """Run one client per queue, turn after turn; each begins `stagger` seconds after the one before."""

    async def client(number: int, queue: list[Request]) -> list[Seen]:
        await asyncio.sleep(number * stagger)
        connection = await connect(port)
        try:
            return [await connection.turn(request) for request in queue]
        finally:
            connection.close()

    tasks = [asyncio.create_task(client(number, queue)) for number, queue in enumerate(queues)]
    try:
        return [seen for each in await asyncio.gather(*tasks) for seen in each]
    finally:
        for task in tasks:
            task.cancel()


async def put_all(port: int, requests: list[bytes], at_once: int) -> None:
    """Send requests that answer with a short body, so many at once. Raises Failed unless all succeed."""
    waiting = iter(requests)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for request in waiting:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
                    raise Failed(f"{head!r} {body!r}")
        finally:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(at_once)))
