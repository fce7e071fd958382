"""uvicorn's protocols with bounds where it has none.

A request's head, what follows a body, pipelined requests and unread pongs would otherwise grow without end,
most of it before any token is seen. What uvicorn refuses itself is a problem document here as well.
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle
from uuid import uuid4

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from agent_backend.errors import MalformedRequest, RequestError, RequestTimeout
from agent_backend.telemetry import metrics
from agent_backend.web.problems import HeadTooLarge, respond

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers, and of trailers; what came in the same read is let through."""
HEAD_SECONDS = 20.0
"""What a client has to send a head in, from the connection's or the head's first byte on."""
MAX_PIPELINED = 64
"""Requests waiting behind the one that is served; uvicorn reads on each time one of them ends."""
MAX_UNREAD_BYTES = 1024 * 1024
"""Answers to pings that the client has not read: pings are answered without waiting for the socket."""


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection."""

    _fruitless = 0
    """Bytes since a head was complete or a piece of a body came."""
    _in_head = False
    _served: RequestResponseCycle | None = None
    """The request that is, or was last, served; `cycle` is the one that was last read."""
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        """Start; the first head must come soon."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell the request that is served: with others waiting behind it, uvicorn would not."""
        self._expect_nothing()
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
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.close()
        elif self._in_head or self._idle:
            self._expect_head()
        else:
            self._expect_nothing()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served; whoever kept the connection opens another."""
        if self._idle and not self._in_head and not self.pipeline:
            self.transport.close()

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head = False
        self._fruitless = 0
        super().on_headers_complete()

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
        socket = self.transport.get_protocol()
        if isinstance(socket, WebSocketsSansIOProtocol) and not socket.handshake_initiated:
            self._refuse(
                MalformedRequest("The handshake has a body, or headers that are too many or too long.")
            )

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; uvicorn calls this."""
        self._refuse(MalformedRequest(msg))

    def _refuse(self, error: RequestError) -> None:
        if self._idle:  # otherwise the text would stand in the midst of another answer
            metrics.http_requests["none", error.status] += 1
            self.transport.write(_as_bytes(error))
        self.transport.close()


class SocketConnection(WebSocketsSansIOProtocol):
    """One WebSocket."""

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read the answers."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()


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
