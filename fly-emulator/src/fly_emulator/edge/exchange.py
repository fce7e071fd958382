"""One HTTP request: placed on a machine, forwarded, answered; tried again or replayed where Fly does so."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from fly_emulator.edge import bodies, forwarded, proxy_errors
from fly_emulator.edge.balance import Want
from fly_emulator.edge.forwarded import Origin
from fly_emulator.edge.http1 import (
    HEAD_LIMIT,
    Framing,
    Headers,
    Malformed,
    RequestHead,
    ResponseHead,
    UntilClose,
    parse_response,
)
from fly_emulator.edge.idle import IdleTimer
from fly_emulator.edge.pool import Pool
from fly_emulator.edge.proxy_errors import ProxyError
from fly_emulator.edge.replay import Replay, failed_header, parse_replay, source_header
from fly_emulator.edge.router import Placement, Router, Search
from fly_emulator.edge.splice import Wire
from fly_emulator.edge.tunnel import Tunnel
from fly_emulator.machine_config import Port

DEAD = frozenset({"stopped", "suspended", "destroyed", "failed"})
"""States in which a machine holds no connection any more."""


class Upstream:
    """What the edge has open to machines, shared by all requests."""

    def __init__(self, router: Router, pool: Pool) -> None:
        self.router = router
        self.pool = pool
        self.links: dict[str, set[Wire]] = defaultdict(set)
        self.tunnels: dict[str, set[Tunnel]] = defaultdict(set)

    def cut_dead(self) -> None:
        """Break connections to machines that hold none any more: a suspended process cannot do it itself."""
        for machine_id in list(self.links):
            machine = self.router.fleet.get(machine_id)
            if machine is None or machine.state in DEAD:
                self.pool.drop(machine_id)
                for link in self.links.pop(machine_id):
                    link.abort()

    async def open(self, placement: Placement, *, pool: bool = True) -> tuple[Wire, bool]:
        """Return a connection and whether it was used before. Raises OSError."""
        pooled = self.pool.take(placement.machine, placement.port) if pool else None
        link = pooled or await self.pool.connect(placement.machine, placement.port)
        self.links[placement.machine.id].add(link)
        return link, pooled is not None

    def done(self, placement: Placement, link: Wire, *, reuse: bool, pool: bool = True) -> None:
        """Give a connection back, or close it; one that cannot be used again is broken off."""
        self.links[placement.machine.id].discard(link)
        if reuse and pool and placement.service.concurrency.type == "requests":
            self.pool.put(placement.machine, placement.port, link)
        elif reuse:
            link.close()
        else:
            link.abort()


class _Again(Exception):
    """This machine could not take it; another may."""


class _Replayed(Exception):
    """The machine says who should have it."""

    def __init__(self, replay: Replay, placement: Placement) -> None:
        super().__init__()
        self.replay = replay
        self.placement = placement


class Exchange:
    """A request from its head to the end of its answer."""

    def __init__(self, upstream: Upstream, client: Wire, head: RequestHead, origin: Origin, rid: str) -> None:
        self._upstream = upstream
        self._router = upstream.router
        self._options = upstream.router.options
        self._client = client
        self._head = head
        self._origin = origin
        self._rid = rid
        self._body = bodies.RequestBody(client, head.framing(), self._options.replay_bytes)
        self._search = Search(origin.port, wanted(head.headers))
        self._extra: list[tuple[bytes, bytes]] = []
        self._replays = 0
        self._fallback: tuple[_Replayed, float] | None = None
        self._answered = False

    async def run(self) -> bool:
        """Answer it; says whether the client's connection can be used again."""
        self._body.start()
        try:
            return await self._run()
        except ProxyError as error:
            method, target = self._head.method.decode(), self._head.target.decode("latin-1")
            self._router.log_error(
                f'{error} request.method="{method}" request.url="{target}" request.id="{self._rid}"'
            )
            return self._refuse(error)
        finally:
            self._body.stop()

    async def _run(self) -> bool:
        while True:
            try:
                placement = await self._place()
            except ProxyError as error:
                self._fall_back(error)
                continue
            try:
                return await self._attempt(placement)
            except _Again:
                continue
            except _Replayed as replayed:
                placement.release()
                self._redirect(replayed)
            finally:
                placement.release()

    async def _place(self) -> Placement:
        return await self._router.place(self._search)

    # --- one machine ---

    async def _attempt(self, placement: Placement) -> bool:
        try:
            link, pooled = await self._upstream.open(placement)
        except OSError as error:
            await self._unreachable(placement, error)
            raise _Again from error
        reuse = False
        try:
            link.write(self._outgoing(placement).encode())
            self._body.attach(link)
            response = await self._response(link)
            if response is None:
                await self._broken(placement, link, pooled=pooled)
                raise _Again
            self._check_replay(response, placement)
            keep, reuse = await self._answer(placement, link, response)
            return keep
        finally:
            self._body.detach()
            self._upstream.done(placement, link, reuse=reuse)

    def _outgoing(self, placement: Placement) -> RequestHead:
        head = forwarded.upstream_head(self._head, self._origin, self._rid)
        head.headers.items += self._extra
        prefer = self._search.want.prefer
        if prefer is not None and placement.machine.id != prefer:
            head.headers.add(b"Fly-Preferred-Instance-Unavailable", prefer.encode())
        return head

    async def _response(self, link: Wire) -> ResponseHead | None:
        """Return the final head, passing interim ones on; None when the connection broke before it."""
        while True:
            try:
                raw = await link.receive_head(HEAD_LIMIT)
                response = None if raw is None else parse_response(raw)
            except (Malformed, ValueError) as error:
                raise proxy_errors.incomplete(str(error)) from error
            if response is None or not response.interim:
                return response
            if self._head.version == b"HTTP/1.1":
                self._client.write(response.encode())

    async def _unreachable(self, placement: Placement, error: OSError) -> None:
        text = (
            proxy_errors.refused(placement.port)
            if isinstance(error, ConnectionRefusedError)
            else f"[PC05] connection to instance failed: {error or 'timed out'}"
        )
        placement.release()
        self._router.log(placement.machine, "error", text)
        await self._router.pause(self._search.failed(placement.machine.id, text))

    async def _broken(self, placement: Placement, link: Wire, *, pooled: bool) -> None:
        """Return if the request may be sent again after its connection broke. Raises ProxyError if not."""
        untouched = not link.pending
        placement.release()
        error = proxy_errors.incomplete("connection closed before message completed")
        again = untouched and self._body.replayable and self._options.retry_sent != "never"
        if again and not pooled and self._options.retry_sent == "leaving":
            again = await self._left(placement)
        if not again:
            raise error
        self._router.log(placement.machine, "warn", str(error))
        await self._router.pause(self._search.failed(placement.machine.id, str(error)))

    async def _left(self, placement: Placement) -> bool:
        """Say whether the machine turns out to be going away."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.leaving_grace
        while placement.machine.state == "started":
            left = end - loop.time()
            if left <= 0:
                return False
            await asyncio.wait([self._router.changed.ticket()], timeout=left)
        return True

    # --- the answer ---

    async def _answer(self, placement: Placement, link: Wire, response: ResponseHead) -> tuple[bool, bool]:
        """Pass the answer on; returns whether the client's and the machine's connection can be kept."""
        offered = self._router.service(placement.machine, self._origin.port)
        options = (offered[1] if offered else Port()).http_options
        if response.status == 101:
            await self._tunnel(placement, link, response, options)
            return False, False
        try:
            framing = response.framing(self._head.method)
        except Malformed as error:
            raise proxy_errors.incomplete(str(error)) from error
        keep = self._head.persistent and not isinstance(framing, UntilClose)
        head = forwarded.client_head(response, self._head, self._rid, options, keep=keep)
        self._answered = True
        self._client.write(head.encode())
        idle = IdleTimer(options.get("idle_timeout"), link.abort)
        try:
            whole = await bodies.relay(link, self._client, framing, idle.touch)
        finally:
            idle.stop()
        if not whole:
            self._router.log(placement.machine, "error", "could not finish reading HTTP body from instance")
            self._break_off(framing)
        reuse = whole and self._body.complete and response.persistent and not link.pending
        return whole and keep, reuse and not isinstance(framing, UntilClose)

    def _break_off(self, framing: Framing) -> None:
        """End the client's connection so that it sees that the body is not whole, after what did come."""
        if isinstance(framing, UntilClose):
            self._client.abort()
        else:
            self._client.close()

    async def _tunnel(
        self, placement: Placement, link: Wire, response: ResponseHead, options: dict[str, Any]
    ) -> None:
        if self._head.upgrade is None:
            raise proxy_errors.incomplete("101 without an upgrade")
        head = forwarded.client_head(response, self._head, self._rid, options, keep=True)
        self._answered = True
        websocket = self._head.upgrade == b"websocket"
        by_requests = placement.service.concurrency.type == "requests"
        if websocket and by_requests and not self._options.websocket_is_load:
            placement.release()
        self._client.on_end = None
        self._body.stop()
        self._client.write(head.encode())
        timeout = options.get("idle_timeout")
        tunnel = Tunnel(self._client, link, websocket=websocket, idle_timeout=timeout)
        tunnels = self._upstream.tunnels[placement.machine.id]
        tunnels.add(tunnel)
        try:
            await tunnel.run()
        finally:
            tunnels.discard(tunnel)

    def _refuse(self, error: ProxyError) -> bool:
        """Answer in the edge's own name. Fly's body is empty as far as is known."""
        if self._answered:
            self._client.abort()
            return False
        keep = self._head.persistent and self._body.complete
        headers = Headers([(b"Content-Length", b"0"), (b"Fly-Emulator-Error", error.code.encode())])
        plain = ResponseHead(b"HTTP/1.1", error.status, REASONS[error.status], headers)
        self._client.write(forwarded.client_head(plain, self._head, self._rid, {}, keep=keep).encode())
        return keep

    @property
    def body_complete(self) -> bool:
        """Whether the client has nothing more to send for this request."""
        return self._body.complete

    # --- replays ---

    def _check_replay(self, response: ResponseHead, placement: Placement) -> None:
        """Raise what the answer's `fly-replay` demands, if it has one."""
        value = response.headers.get(b"fly-replay")
        if value is None or response.status == 101:
            return
        if self._fallback is not None:
            raise ProxyError("PA03", "a fallback request cannot be replayed", 502)
        if not self._body.replayable:
            raise proxy_errors.too_large(self._options.replay_bytes)
        self._replays += 1
        if self._replays > self._options.max_replays:
            raise ProxyError(
                "PA02", f"fly-replay was returned more than {self._options.max_replays} times", 502
            )
        try:
            replay = parse_replay(value.decode("latin-1"))
        except ValueError as error:
            raise ProxyError("PA03", f"invalid fly-replay: {error}", 502) from error
        if replay.app not in {None, self._router.fleet.app}:
            raise ProxyError("PA04", f"replay target app {replay.app} not found", 502)
        raise _Replayed(replay, placement)

    def _redirect(self, replayed: _Replayed) -> None:
        replay, source = replayed.replay, replayed.placement.machine
        want = Want(
            force=replay.instance,
            prefer=replay.prefer_instance,
            regions=replay.regions,
            force_region=bool(replay.regions),
            exclude=frozenset({source.id}) if replay.elsewhere else frozenset(),
        )
        self._search = Search(self._origin.port, want, timeout=replay.timeout)
        self._extra = [(b"Fly-Replay-Src", source_header(source.id, source.region, replay.state).encode())]
        self._last_replay = replayed if replay.fallback is not None else None

    _last_replay: _Replayed | None = None

    def _fall_back(self, error: ProxyError) -> None:
        """Go back to the machine that replayed, if it asked for that. Raises the error otherwise."""
        replayed, self._last_replay = self._last_replay, None
        if replayed is None:
            raise error
        replay, source = replayed.replay, replayed.placement.machine
        elapsed = asyncio.get_running_loop().time() - self._search.began
        reason = "no_candidate" if self._search.last is None else "retries_exhausted"
        if replay.timeout is not None and elapsed >= replay.timeout:
            reason = "timeout"
        text = failed_header(
            replay, app=self._router.fleet.app, source=source.id, reason=reason, elapsed=elapsed
        )
        self._extra = [(b"Fly-Replay-Failed", text.encode())]
        self._fallback = (replayed, elapsed)
        forced = replay.fallback == "force_self"
        want = Want(force=source.id) if forced else Want(prefer=source.id)
        self._search = Search(self._origin.port, want)


REASONS = {
    301: b"Moved Permanently",
    400: b"Bad Request",
    404: b"Not Found",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}


def wanted(headers: Headers) -> Want:
    """Read the routing headers of a request (superfly/docs networking/dynamic-request-routing)."""

    def text(name: bytes) -> str | None:
        value = headers.get(name)
        return value.decode("latin-1").strip() or None if value is not None else None

    forced = text(b"fly-force-region")
    regions = forced or text(b"fly-prefer-region") or ""
    return Want(
        force=text(b"fly-force-instance-id"),
        prefer=text(b"fly-prefer-instance-id"),
        regions=tuple(name.strip() for name in regions.split(",") if name.strip()),
        force_region=forced is not None,
    )
