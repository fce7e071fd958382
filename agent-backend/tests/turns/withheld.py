"""A way to Postgres on which answers can be withheld: a statement is carried out and nobody is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit


class Way:
    """A proxy in front of Postgres. While `open` is not set, no answer gets through; requests do."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        self._folder = parse_qs(parts.query)["host"][0]
        self._user = parts.username or "postgres"
        self._name = parts.path
        self.open = asyncio.Event()
        self.open.set()
        self.withheld = 0
        """Bytes of answers that wait."""
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, port: int) -> str:
        """Return the database's URL by this way."""
        return f"postgresql://{self._user}@127.0.0.1:{port}{self._name}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one connection until either side ends it."""
        behind, before = await asyncio.open_unix_connection(f"{self._folder}/.s.PGSQL.5432")
        pumps = [
            asyncio.create_task(self._pump(reader, before, held=False)),
            asyncio.create_task(self._pump(behind, writer, held=True)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        before.close()
        writer.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, held: bool) -> None:
        while data := await source.read(65536):
            if held and not self.open.is_set():
                self.withheld += len(data)
                await self.open.wait()
            target.write(data)
            await target.drain()


@asynccontextmanager
async def way_to(database_url: str) -> AsyncGenerator[tuple[Way, str]]:
    """Open a way to an embedded Postgres (a URL with its socket's folder); yield it and the URL to use."""
    way = Way(database_url)
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    try:
        yield way, way.url(server.sockets[0].getsockname()[1])
    finally:
        way.open.set()
        server.close()
        for task in way._tasks:
            task.cancel()
        await asyncio.gather(*way._tasks, return_exceptions=True)
