"""A relay between a server and Postgres that reads along what the server asks.

PostgreSQL's frontend protocol, version 3: a start-up message, then messages of a type byte and a length. Of
those only Parse, Bind and Query matter here: which statement runs with which arguments.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit


class Asked(NamedTuple):
    """A statement that was run, and the bytes that its arguments were sent as."""

    statement: str
    arguments: bytes


class Tap:
    """What has passed so far, over all connections; written by the relay's thread."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def between(self, start: int, end: int, *told: bytes) -> list[str]:
        """Return the statements asked from `start` to `end` whose arguments hold any of these."""
        asked = self.asked[start:end]
        return [each.statement for each in asked if any(one in each.arguments for one in told)]


class _Connection:
    """The messages of one connection's client, taken apart."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._buffer = b""
        self._started = False
        self._prepared: dict[bytes, str] = {}

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head = 0 if not self._started else 1
            if len(self._buffer) < head + 4:
                return
            end = head + struct.unpack_from("!i", self._buffer, head)[0]
            if len(self._buffer) < end:
                return
            kind, body = self._buffer[:head], self._buffer[head + 4 : end]
            self._buffer = self._buffer[end:]
            self._started = True
            self._read(kind, body)

    def _read(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            self._prepared[name] = query.decode()
        elif kind == b"B":
            _, name, arguments = body.split(b"\0", 2)
            self._tap.asked.append(Asked(self._prepared[name], arguments))
        elif kind == b"Q":
            self._tap.asked.append(Asked(body.rstrip(b"\0").decode(), body))


class _Relay:
    """Passes bytes on in both directions, in a thread and event loop of its own."""

    def __init__(self, tap: Tap, url: str, socket: Path) -> None:
        self._tap = tap
        self._parts = urlsplit(url)
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._relay, self._socket)
        self._listening.set()
        await self._ending.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _database(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = parse_qs(self._parts.query).get("host")
        if folder is not None:
            return await asyncio.open_unix_connection(
                Path(folder[0]) / f".s.PGSQL.{self._parts.port or 5432}"
            )
        return await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_database, to_database = await self._database()
        connection = _Connection(self._tap)
        back = asyncio.create_task(_copy(from_database, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    connection.feed(data)
                    to_database.write(data)
                    await to_database.drain()
        finally:
            back.cancel()
            to_database.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def tapped(url: str, user: str, password: str) -> Generator[tuple[Tap, str]]:
    """Relay to the database of `url`; yields what passes, and the URL to connect to as `user`."""
    tap = Tap()
    with tempfile.TemporaryDirectory(prefix="myhealth-tap-") as folder:
        relay = _Relay(tap, url, Path(folder) / ".s.PGSQL.5432")
        relay.start()
        try:
            name = urlsplit(url).path
            yield tap, f"postgresql://{user}:{password}@{name}?host={quote(folder)}&sslmode=disable"
        finally:
            relay.stop()
