"""uvicorn's protocols with bounds where it has none.

A request's head, what follows a body, pipelined requests and unread pongs would otherwise grow without end,
most of it before any token is seen. What uvicorn refuses itself is a problem document here as well.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Transport
from asyncio.events import TimerHandle
from contextlib import suppress
from typing import Any
from uuid import uuid4

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from agent_backend.errors import MalformedRequest, RequestError, RequestTimeout, Unavailable
from agent_backend.settings import Settings
from agent_backend.telemetry import metrics
from agent_backend.web.limits import is_private
from agent_backend.web.problems import HeadTooLarge, respond

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers, and of trailers; what came in the same read is let through."""
HEAD_SECONDS = 20.0
"""What a client has to send a head in, from the connection's or the head's first byte on."""
MAX_HEADERS = 100
MAX_CHUNKS = 16_384
"""Of one request. Chunks of a byte cost as much to read as chunks of a kilobyte."""
MAX_PIPELINED = 64
"""Requests waiting behind the one that is served; uvicorn reads on each time one of them ends."""
MAX_UNREAD_BYTES = 1024 * 1024
"""Answers to pings that the client has not read: pings are answered without waiting for the socket."""
MAX_FRAGMENTS = 1024
"""Of one WebSocket message: empty ones would count towards no limit of bytes."""
WAITING_PER_PEER = 256
"""Connections of one address without a request, where clients reach us directly."""
PINGS_BURST = 1000
PING_SECONDS = 0.05
"""What a socket may ping at once, and how often from then on."""
LEAST_READ_PER_SECOND = 1024
"""What a client has to read of what waits for it, in bytes."""
UNREAD_SECONDS = 60.0
LINGER_SECONDS = 10.0
"""How often that is looked at: while it is served, and while its connection is being closed."""

_MOST_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 128


class Unread:
    """Watches a client that has much to read, and drops it when it does not get on with that."""

    __slots__ = ("_left", "_loop", "_seconds", "_timer", "_transport")

    def __init__(self, loop: AbstractEventLoop, transport: Transport, seconds: float) -> None:
        self._loop = loop
        self._transport = transport
        self._seconds = seconds
        self._left = transport.get_write_buffer_size()
        self._timer = loop.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if self._left - left < self._seconds * LEAST_READ_PER_SECOND:
            self._transport.abort()
            return
        self._left = left
        self._timer = self._loop.call_later(self._seconds, self._look)


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection."""

    _fruitless = 0
    """Bytes since a head was complete or a piece of a body came."""
    _in_head = False
    _chunks = 0
    _why: RequestError | None = None
    """Why we have stopped the parser."""
    _unread: Unread | None = None
    _served: RequestResponseCycle | None = None
    """The request that is, or was last, served; `cycle` is the one that was last read."""
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        """Start; the first head must come soon."""
        super().connection_made(transport)
        self._expect_head()
        self._doors = _doors_of(self.app_state)
        self._doors.enter(self, len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell the request that is served: with others waiting behind it, uvicorn would not."""
        self._expect_nothing()
        self._doors.leave(self)
        if self._unread is not None:
            self._unread.cancel()
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and refuse what has no end."""
        self._fruitless += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.transport.get_protocol() is not self:
            self._upgraded()
        elif self._fruitless > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"The head of a request is at most {MAX_HEAD_BYTES} bytes."))
        elif len(self.pipeline) > MAX_PIPELINED or self._chunks > MAX_CHUNKS:
            self.transport.close()
        elif self._in_head or self._idle:
            self._expect_head()
        else:
            self._expect_nothing()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served; whoever kept the connection opens another."""
        if self._idle and not self._in_head and not self.pipeline:
            self.transport.close()

    @property
    def waits(self) -> bool:
        """Whether no request is being served: the head of one may be on its way."""
        return self._idle and not self.pipeline

    @property
    def half(self) -> bool:
        """Whether a part of a head has come, and nothing else is going on."""
        return self._in_head and self.waits

    @property
    def peer(self) -> str:
        """The other end's address."""
        return self.client[0] if self.client else ""

    def turn_away(self) -> None:
        """Close because there is no room; a head that is on its way is told so."""
        if self._in_head:
            self._refuse(Unavailable("There are too many connections."))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Note that the client has stopped reading; it has a while to go on."""
        super().pause_writing()
        if self._unread is None:
            self._unread = Unread(self.loop, self.transport, UNREAD_SECONDS)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one; see to the end of a connection that is closing."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()
        elif self.waits:
            self._doors.wait(self)

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        self._in_head = True
        self._chunks = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head = False
        self._fruitless = 0
        if len(self.headers) > MAX_HEADERS:
            # The parser stops, and uvicorn answers by `send_400_response`.
            self._why = HeadTooLarge(f"A request has at most {MAX_HEADERS} headers.")
            raise ValueError
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count chunks; the parser calls this."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Note that there was a piece of a body."""
        self._fruitless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._fruitless = 0
        super().on_message_complete()

    # --- heads that do not come ---

    @property
    def _idle(self) -> bool:
        """Whether no request is being served."""
        return self._served is None or self._served.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        self._doors.serve(self)
        super()._start_asgi_task(cycle, app)

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._in_head:
            self._refuse(RequestTimeout(f"The head did not arrive within {HEAD_SECONDS:g} seconds."))
        else:
            self.transport.close()

    # --- refusals ---

    def _upgraded(self) -> None:
        """See to a WebSocket's handshake that the protocol cannot read: it would keep silent for ever."""
        self._expect_nothing()
        self._doors.leave(self)
        socket = self.transport.get_protocol()
        if isinstance(socket, WebSocketsSansIOProtocol) and not socket.handshake_initiated:
            self._refuse(
                MalformedRequest("The handshake has a body, or headers that are too many or too long.")
            )

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; uvicorn calls this."""
        self._refuse(self._why or MalformedRequest(msg))

    def _refuse(self, error: RequestError) -> None:
        if self._idle:  # otherwise the text would stand in the midst of another answer
            metrics.http_requests["none", error.status] += 1
            self.transport.write(_as_bytes(error))
        self.transport.close()
        self._linger()

    def _linger(self) -> None:
        """Bound what closing waits for: a client that never reads would keep the connection for ever."""
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = Unread(self.loop, self.transport, LINGER_SECONDS)


class SocketConnection(WebSocketsSansIOProtocol):
    """One WebSocket."""

    _pings_due = 0.0
    _unread: Unread | None = None

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read the answers, or pings all the time."""
        super().handle_ping()
        now = self.loop.time()
        self._pings_due = max(self._pings_due, now) + PING_SECONDS
        too_many = self._pings_due - now > PINGS_BURST * PING_SECONDS
        if too_many or self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        """Take a part of a message, unless there are too many."""
        super().handle_cont(event)
        if len(self.frames) > MAX_FRAGMENTS:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Note that the client has stopped reading; it has a while to go on."""
        super().pause_writing()
        if self._unread is None:
            self._unread = Unread(self.loop, self.transport, UNREAD_SECONDS)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        super().resume_writing()
        self._read_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._read_again()
        super().connection_lost(exc)

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class Doors:
    """How many connections may be open, and who goes when there are too many: whoever waits longest.

    A connection that waits has nothing to lose: no request on it has been read. One that is served is never
    closed for another. Refusing the newest instead would let a stranger who holds connections open keep
    everybody out; this way he has to open them faster than heads arrive.
    """

    def __init__(self, most: int, most_of_one_peer: int | None, *, behind_a_proxy: bool) -> None:
        self._most = most
        self._most_of_one_peer = most_of_one_peer
        self._behind_a_proxy = behind_a_proxy
        self._waiting: dict[HttpConnection, None] = {}
        """In the order in which they began to wait."""
        self._by_peer: dict[str, dict[HttpConnection, None]] = {}
        """The same for each peer, where peers are clients."""

    def enter(self, connection: HttpConnection, count: int) -> None:
        """Let a connection in, of which there are `count` now."""
        if count > self._most:
            oldest = next(iter(self._waiting), connection)
            metrics.limited["connections"] += 1
            self.leave(oldest)
            oldest.turn_away()
        self.wait(connection)
        peers = self._by_peer.get(connection.peer, ())
        if self._most_of_one_peer is not None and len(peers) > self._most_of_one_peer:
            oldest = next(iter(peers))
            metrics.limited["connections"] += 1
            self.leave(oldest)
            oldest.turn_away()

    def wait(self, connection: HttpConnection) -> None:
        """Note that a connection waits from now on."""
        self.leave(connection)
        self._waiting[connection] = None
        if self._most_of_one_peer is not None and not (self._behind_a_proxy and is_private(connection.peer)):
            self._by_peer.setdefault(connection.peer, {})[connection] = None

    def serve(self, connection: HttpConnection) -> None:
        """Note that a connection has a request."""
        self.leave(connection)

    def leave(self, connection: HttpConnection) -> None:
        """Note that a connection waits no more."""
        self._waiting.pop(connection, None)
        peers = self._by_peer.get(connection.peer)
        if peers is not None:
            peers.pop(connection, None)
            if not peers:
                del self._by_peer[connection.peer]


_DOORS = "doors"


def _doors_of(app_state: dict[str, Any]) -> Doors:
    """Return the server's; the state is one for all of its connections."""
    doors: Doors | None = app_state.get(_DOORS)
    if doors is None:
        settings: Settings = app_state["services"].settings
        most_of_one_peer = round(WAITING_PER_PEER * settings.limit_factor) or None
        most = min(settings.max_connections, _descriptors())
        doors = app_state[_DOORS] = Doors(most, most_of_one_peer, behind_a_proxy=settings.trust_fly_client_ip)
    return doors


def _descriptors() -> int:
    """Return how many connections the process's limit of descriptors has room for.

    A turn may need one to the model beside its client's, and Postgres and files need some: half of what is
    left. So the system never refuses us one, and accepting never fails.
    """
    import resource  # noqa: PLC0415 - not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft < wanted:
        with suppress(ValueError, OSError):  # macOS says that it has no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (soft - _OTHER_DESCRIPTORS) // 2)


def _as_bytes(error: RequestError) -> bytes:
    request_id = uuid4().hex
    response = respond(error, request_id)
    headers = [
        *response.raw_headers,
        (b"x-request-id", request_id.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", bytes(response.body)])
