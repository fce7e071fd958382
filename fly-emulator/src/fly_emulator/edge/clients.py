"""Client connections: HTTP/1.1 with one exchange after the other, and plain TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from fly_emulator.edge import forwarded
from fly_emulator.edge.balance import Want
from fly_emulator.edge.exchange import REASONS, Exchange, Upstream
from fly_emulator.edge.forwarded import Origin
from fly_emulator.edge.http1 import HEAD_LIMIT, Headers, Malformed, RequestHead, ResponseHead, parse_request
from fly_emulator.edge.proxy_errors import ProxyError, refused
from fly_emulator.edge.router import Placement, Search
from fly_emulator.edge.splice import Wire
from fly_emulator.edge.tunnel import Tunnel

_LINGER = 1.0
"""Seconds a client that is still sending has to read why it is not listened to any more."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A listener: the service port it stands for, and what is done with its connections."""

    port: int
    tls: bool
    http: bool


class Clients:
    """Serves connections until told to stop."""

    def __init__(self, upstream: Upstream, https_port: Callable[[], int | None]) -> None:
        self._upstream = upstream
        self._router = upstream.router
        self._https_port = https_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Wire] = set()
        self.requests = 0

    def accept(self, client: Wire, entry: Entry) -> None:
        """Serve a connection."""
        self._open.add(client)
        client.lost.add_done_callback(lambda _lost: self._open.discard(client))
        serve = self._http(client, entry) if entry.http else self._tcp(client, entry)
        task = asyncio.create_task(serve)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Break all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in list(self._open):
            client.abort()

    # --- HTTP ---

    async def _http(self, client: Wire, entry: Entry) -> None:
        keep = True
        try:
            while keep:
                await client.drained()
                raw = await client.receive_head(HEAD_LIMIT)
                if raw is None:
                    break
                keep = await self._request(client, entry, parse_request(raw))
        except Malformed as error:
            self._plain(client, error.status)
        except ValueError:
            self._plain(client, 431)
        except asyncio.CancelledError:
            client.abort()
            raise
        finally:
            client.close()

    async def _request(self, client: Wire, entry: Entry, head: RequestHead) -> bool:
        self.requests += 1
        origin = self._origin(client, entry)
        rid = forwarded.request_id(self._router.region)
        location = self._redirect(head, origin)
        if location is not None:
            return self._move(client, head, rid, location)
        exchange = Exchange(self._upstream, client, head, origin, rid)
        task = asyncio.current_task()
        assert task is not None
        if client.eof:
            return False
        client.on_end = lambda: _cancel(task)
        try:
            keep = await exchange.run()
        finally:
            client.on_end = None
        if not exchange.body_complete:
            await client.linger(_LINGER)
            return False
        return keep

    def _origin(self, client: Wire, entry: Entry) -> Origin:
        peer = client.transport.get_extra_info("peername")
        here = client.transport.get_extra_info("sockname")
        port = entry.port
        if port == 80 and not self._router.candidates(80) and self._router.candidates(443):
            port = 443
        return Origin(
            client_ip=peer[0] if peer else "127.0.0.1",
            edge_ip=here[0] if here else "127.0.0.1",
            port=port,
            tls=entry.tls,
            region=self._router.region,
        )

    def _redirect(self, head: RequestHead, origin: Origin) -> bytes | None:
        """Return where `force_https` sends the client, if it does and there is such a listener."""
        secure = self._https_port()
        if origin.tls or secure is None:
            return None
        for machine in self._router.fleet.machines():
            offered = self._router.service(machine, origin.port)
            if offered is not None and offered[1].force_https:
                break
        else:
            return None
        host = head.headers.get(b"host") or origin.edge_ip.encode()
        name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
        return b"https://" + name + (b"" if secure == 443 else b":%d" % secure) + head.target

    def _move(self, client: Wire, head: RequestHead, rid: str, location: bytes) -> bool:
        keep = head.persistent and head.framing().complete
        headers = Headers([(b"Location", location), (b"Content-Length", b"0")])
        plain = ResponseHead(b"HTTP/1.1", 301, REASONS[301], headers)
        client.write(forwarded.client_head(plain, head, rid, {}, keep=keep).encode())
        return keep

    @staticmethod
    def _plain(client: Wire, status: int) -> None:
        headers = Headers(
            [(b"Content-Length", b"0"), (b"Connection", b"close"), (b"Server", forwarded.SERVER)]
        )
        client.write(ResponseHead(b"HTTP/1.1", status, REASONS[status], headers).encode())

    # --- TCP ---

    async def _tcp(self, client: Wire, entry: Entry) -> None:
        client.keep_half_open = True
        search = Search(entry.port, Want())
        try:
            while True:
                placement = await self._router.place(search)
                if await self._tunnel(client, placement, search):
                    break
        except ProxyError as error:
            text = f"[PR01] no known healthy instances found for route tcp/{entry.port}. last error: {error}"
            self._router.log_error(text)
            client.abort()
        except asyncio.CancelledError:
            client.abort()
            raise
        finally:
            client.close()

    async def _tunnel(self, client: Wire, placement: Placement, search: Search) -> bool:
        """Pass the connection's bytes until it ends; False when the machine cannot be reached."""
        try:
            link, _ = await self._upstream.open(placement, pool=False)
        except OSError:
            placement.release()
            text = refused(placement.port)
            self._router.log(placement.machine, "error", text)
            await self._router.pause(search.failed(placement.machine.id, text))
            return False
        except BaseException:
            placement.release()
            raise
        try:
            await Tunnel(client, link, websocket=False, idle_timeout=None).run()
        finally:
            placement.release()
            self._upstream.done(placement, link, reuse=True, pool=False)
        return True


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
