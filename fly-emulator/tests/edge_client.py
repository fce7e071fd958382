"""An edge with its log for tests, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy import Edge
from fly_emulator.timescale import TimeScale

from .local_fleet import HOST, LocalFleet

_T = TypeVar("_T")

QUICK: dict[str, Any] = {
    "seed": 1,
    "retry_delay": 0.01,
    "max_attempts": 10,
    "soft_cordon_seconds": 0.0,
    "close_grace_seconds": 5.0,
    "time_scale": TimeScale(minute_seconds=3600.0),
}


class LoggedEdge(Edge):
    """An edge that keeps what it logs."""

    lines: list[str]
    clients: list[RawClient]

    def logged(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def open_load(self) -> int:
        return sum(self.load(machine.id) for machine in self.fleet.machines())


@asynccontextmanager
async def an_edge(
    fleet: LocalFleet, state_dir: Path, *, https: bool = False, **options: Any
) -> AsyncGenerator[LoggedEdge]:
    lines: list[str] = []
    edge = LoggedEdge(
        fleet,
        host=HOST,
        http_port=0,
        https_port=0 if https else None,
        options=EdgeOptions(**{**QUICK, **options}),
        log=lines.append,
        state_dir=state_dir,
    )
    edge.lines, edge.clients = lines, []
    await edge.start()
    try:
        yield edge
    finally:
        await edge.stop()
        await fleet.close()
        for client in edge.clients:
            await client.closed()


class RawClient:
    """A connection to the edge, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(
        cls, edge: LoggedEdge, port: int = 80, context: ssl.SSLContext | None = None
    ) -> RawClient:
        host, number = edge.addresses[port]
        client = cls(*await asyncio.open_connection(host, number, ssl=context))
        edge.clients.append(client)
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def get(self, path: str = "/", *headers: str) -> None:
        lines = [f"GET {path} HTTP/1.1", "Host: testapp.localhost", *headers, "", ""]
        self.send("\r\n".join(lines).encode())

    async def head(self) -> tuple[int, dict[str, str]]:
        text = (await within(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")
        first, *lines = text.strip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await within(self.reader.readexactly(int(headers["content-length"])))
        pieces: list[bytes] = []
        while True:
            size = int((await within(self.reader.readuntil(b"\r\n"))).split(b";")[0], 16)
            pieces.append((await within(self.reader.readexactly(size + 2)))[:-2])
            if size == 0:
                return b"".join(pieces)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        return status, headers, await self.body(headers)

    async def rest(self) -> bytes:
        """Read to the end; a reset is an end too."""
        pieces: list[bytes] = []
        try:
            while data := await within(self.reader.read(65536)):
                pieces.append(data)
        except ConnectionError:
            pass
        return b"".join(pieces)

    def close(self) -> None:
        self.writer.close()

    async def closed(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def within(awaitable: Awaitable[_T], seconds: float = 10.0) -> _T:
    """Fail rather than hang."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what happens in this process but tells nobody."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)
