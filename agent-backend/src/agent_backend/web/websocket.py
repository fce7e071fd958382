"""One WebSocket for many sessions: subscribe with a cursor, get the same events as over SSE.

Client frames: authenticate, subscribe, unsubscribe, ping. Server frames: AG-UI events, whose
metadata.threadId names the session, and control frames with a lower-case `type`.

A socket lives as long as its token: some time before the end comes `token_expiring`, and `authenticate` with
a fresh token of the same user lets it go on; else it is closed with 4401.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from contextlib import aclosing, suppress
from typing import TypeAlias
from uuid import UUID

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_backend import events as agui
from agent_backend.auth import Principal
from agent_backend.errors import (
    AgentBackendError,
    MalformedRequest,
    NotFound,
    RequestError,
    TooManyRequests,
    Unavailable,
)
from agent_backend.telemetry import Log, metrics
from agent_backend.web.operations import SocketCall, SocketOperation, socket
from agent_backend.web.problems import seconds
from agent_backend.web.stream import CutOff, Follower, parse_cursor

_log = Log("websocket")

MAX_SUBSCRIPTIONS = 50
MAX_BAD_FRAMES = 10
"""A client may be wrong now and then; one that never is right is closed."""

FRAMES_BURST = 200
FRAME_SECONDS = 0.02
"""What a socket may send at once, and how far apart its frames are read from then on."""

_GOING_AWAY = 1001
_POLICY_VIOLATION = 1008
TOKEN_ENDED = 4401
"""Of the codes for private use (RFC 6455, 7.4.2); it ends as HTTP's 401."""

WARNING_SECONDS = 60.0
"""So long before its end a client is told that its token ends, or a quarter of the token's life before."""
_LOOK_SECONDS = 15.0
"""How often the wall clock is asked: after a freeze the other one does not know how much time has passed."""
_GOODBYE_SECONDS = 1.0


class Authenticate(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="authenticate"
):
    """Go on with a fresh token of the same user."""

    token: str


class Subscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="subscribe"):
    """Follow a session from a cursor; without one, from its beginning."""

    session: UUID
    after: str | None = None


class Unsubscribe(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="unsubscribe"
):
    """Follow a session no longer."""

    session: UUID


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ping"):
    """Ask for a pong."""


class Authenticated(msgspec.Struct, frozen=True, tag_field="type", tag="authenticated"):
    """The token was taken; the socket lives until it ends."""

    expires_at: dt.datetime


class TokenExpiring(msgspec.Struct, frozen=True, tag_field="type", tag="token_expiring"):
    """Soon the socket is closed with 4401, unless the client authenticates with a fresh token."""

    expires_at: dt.datetime


class Subscribed(msgspec.Struct, frozen=True, tag_field="type", tag="subscribed"):
    """The session's events follow."""

    session: UUID


class Unsubscribed(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribed"):
    """No more events of this session: as asked, or (`resume`) to be subscribed again with the last cursor."""

    session: UUID
    resume: bool = False


class Pong(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """The answer to a ping."""


class ErrorFrame(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error", omit_defaults=True
):
    """A frame could not be served; the socket stays."""

    code: str
    detail: str
    session: UUID | None = None
    retry_after: int | None = None
    """Seconds, of `too_many_requests`."""


ClientFrame: TypeAlias = Authenticate | Subscribe | Unsubscribe | Ping
ServerFrame: TypeAlias = Authenticated | TokenExpiring | Subscribed | Unsubscribed | Pong | ErrorFrame

_decoder = msgspec.json.Decoder(ClientFrame)


class _Connection:
    """One open socket and its subscriptions."""

    def __init__(self, call: SocketCall) -> None:
        self._call = call
        self._socket: WebSocket = call.websocket
        self._followers: dict[UUID, asyncio.Task[None]] = {}
        self._leaving = call.services.machine.hub.leaving
        self._bad_frames = 0
        self._ending: asyncio.Task[None] | None = None
        self._stuck = False
        self._frames_due = 0.0
        self._closing: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve frames until the client closes or its token ends."""
        await self._call.accept()
        metrics.streams_open += 1
        self._closing.append(asyncio.create_task(self._say_goodbye()))
        call = self._call
        running = asyncio.current_task()
        self._live_until(call.principal)
        try:
            with call.services.limits.stream(call.scope, call.user_id, self._cut):
                await self._listen()
        except asyncio.CancelledError:
            if not self._stuck or running is None or running.uncancel() > 0:
                raise
        finally:
            metrics.streams_open -= 1
            tasks = [*self._closing, *self._followers.values(), *([self._ending] if self._ending else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the token ---

    def _live_until(self, principal: Principal) -> None:
        """Let the socket live until this token ends, and no longer."""
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.create_task(self._end_with(principal, asyncio.current_task()))

    async def _end_with(self, principal: Principal, running: asyncio.Task[object] | None) -> None:
        """Warn before the token ends, then close; a client that takes nothing any more is cut."""
        ends = principal.expires_at.timestamp()
        await _wall_clock(ends - min(WARNING_SECONDS, (ends - time.time()) / 4))
        with suppress(WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(max(0.0, principal.streams_until - time.time())):
                await self._send(TokenExpiring(principal.expires_at))
        await _wall_clock(principal.streams_until)
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._socket.close(TOKEN_ENDED, "the token has ended")
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            self._stuck = True
            if running is not None:
                running.cancel()

    async def _authenticate(self, token: str) -> None:
        try:
            principal = await self._call.check(token)
        except RequestError as error:
            if not isinstance(error, Unavailable):
                self._bad_frames += 1
            await self._send(ErrorFrame(code=error.code, detail=error.detail))
            return
        if principal.user_id != self._call.user_id:
            with suppress(WebSocketDisconnect, RuntimeError):  # it may be closing already
                await self._socket.close(_POLICY_VIOLATION, "the token is another user's")
            return
        self._live_until(principal)
        await self._send(Authenticated(principal.expires_at))

    # --- frames ---

    async def _listen(self) -> None:
        while self._bad_frames < MAX_BAD_FRAMES:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._pace()
            await self._serve(message.get("text"))
        await self._socket.close(_POLICY_VIOLATION, "too many malformed frames")

    async def _pace(self) -> None:
        """Put off the next frame of a socket that sends too many; uvicorn reads no more meanwhile."""
        now = asyncio.get_running_loop().time()
        self._frames_due = max(self._frames_due, now) + FRAME_SECONDS
        wait = self._frames_due - now - FRAMES_BURST * FRAME_SECONDS
        if wait > 0:
            await asyncio.sleep(wait)

    def _cut(self) -> None:
        """End this socket in favour of a newer one of the same user."""
        self._closing.append(asyncio.create_task(self._close()))

    async def _say_goodbye(self) -> None:
        """Close before a stopping server does, with the code that tells clients to come back."""
        await self._leaving.wait()
        await self._close()

    async def _close(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(_GOING_AWAY)

    async def _serve(self, text: str | None) -> None:
        try:
            frame: ClientFrame = _decoder.decode(text if text is not None else b"")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self._bad_frames += 1
            detail = str(error) if text is not None else "frames must be text"
            await self._send(ErrorFrame(code="malformed_frame", detail=detail))
            return
        match frame:
            case Authenticate():
                await self._authenticate(frame.token)
            case Subscribe():
                await self._subscribe(frame)
            case Unsubscribe():
                await self._unsubscribe(frame.session)
                await self._send(Unsubscribed(frame.session))
            case Ping():
                await self._send(Pong())

    async def _subscribe(self, frame: Subscribe) -> None:
        session = frame.session
        try:
            after = parse_cursor(frame.after, "after")
            await self._unsubscribe(session)
            self._call.services.limits.take("reads", self._call.user_id)
            if len(self._followers) >= MAX_SUBSCRIPTIONS:
                raise MalformedRequest(f"at most {MAX_SUBSCRIPTIONS} sessions on one socket")
            follower = Follower(self._call.services.machine, self._call.user_id, session, after)
            await follower.check()
        except RequestError as error:
            if not isinstance(error, (NotFound, TooManyRequests)):
                self._bad_frames += 1
            wait = seconds(error.retry_after) if isinstance(error, TooManyRequests) else None
            frame_out = ErrorFrame(code=error.code, detail=error.detail, session=session, retry_after=wait)
            await self._send(frame_out)
            return
        await self._send(Subscribed(session))
        self._followers[session] = asyncio.create_task(self._follow(session, follower))

    async def _unsubscribe(self, session: UUID) -> None:
        task = self._followers.pop(session, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, session: UUID, follower: Follower) -> None:
        thread = str(session)
        try:
            async with aclosing(follower.batches()) as batches:
                async for batch in batches:
                    for cursor, event in batch:
                        place = None if cursor is None else str(cursor)
                        await self._socket.send_text(agui.positioned(event, thread, place).decode())
        except CutOff:
            if not self._leaving.is_set():
                await self._end(session, resume=True)
        except AgentBackendError:
            await self._end(session, resume=False)
        except (WebSocketDisconnect, RuntimeError):
            return  # the socket is closing; `run` ends the rest
        except Exception as error:  # noqa: BLE001 - the boundary of this task: the client must hear of it
            _log.error("stream_broke", error=error, session_id=session)
            await self._end(session, resume=True)

    async def _end(self, session: UUID, *, resume: bool) -> None:
        if self._followers.get(session) is asyncio.current_task():
            del self._followers[session]
        await self._send(Unsubscribed(session, resume=resume))

    async def _send(self, frame: ServerFrame) -> None:
        try:
            await self._socket.send_text(msgspec.json.encode(frame).decode())
        except RuntimeError as error:  # the protocol has closed it already, over a frame that broke the rules
            raise WebSocketDisconnect(1006) from error


async def _wall_clock(moment: float) -> None:
    """Wait until a time in seconds since 1970."""
    while (left := moment - time.time()) > 0:  # noqa: ASYNC110 - only the clock knows
        await asyncio.sleep(min(left, _LOOK_SECONDS))


@socket(
    "/v1/stream",
    summary="Follow sessions over one WebSocket",
    tag="sessions",
    client=ClientFrame,
    server=ServerFrame,
)
async def stream(call: SocketCall) -> None:
    """Serve one socket."""
    await _Connection(call).run()


SOCKETS: tuple[SocketOperation, ...] = (stream,)
