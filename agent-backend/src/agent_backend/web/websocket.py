"""One WebSocket for many sessions: subscribe with a cursor, get the same events as over SSE.

Client frames: subscribe, unsubscribe, ping. Server frames: AG-UI events, whose metadata.threadId names the
session, and control frames with a lower-case `type`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TypeAlias
from uuid import UUID

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_backend import events as agui
from agent_backend.errors import AgentBackendError, MalformedRequest, NotFound, RequestError
from agent_backend.telemetry import Log, metrics
from agent_backend.web.operations import SocketCall, SocketOperation, socket
from agent_backend.web.stream import CutOff, Follower, parse_cursor

_log = Log("websocket")

MAX_SUBSCRIPTIONS = 50
MAX_BAD_FRAMES = 10
"""A client may be wrong now and then; one that never is right is closed."""

_GOING_AWAY = 1001
_POLICY_VIOLATION = 1008


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


ClientFrame: TypeAlias = Subscribe | Unsubscribe | Ping
ServerFrame: TypeAlias = Subscribed | Unsubscribed | Pong | ErrorFrame

_decoder = msgspec.json.Decoder(ClientFrame)


class _Connection:
    """One open socket and its subscriptions."""

    def __init__(self, call: SocketCall) -> None:
        self._call = call
        self._socket: WebSocket = call.websocket
        self._followers: dict[UUID, asyncio.Task[None]] = {}
        self._leaving = call.services.machine.hub.leaving
        self._bad_frames = 0

    async def run(self) -> None:
        """Serve frames until the client closes."""
        await self._call.accept()
        metrics.streams_open += 1
        goodbye = asyncio.create_task(self._say_goodbye())
        try:
            while self._bad_frames < MAX_BAD_FRAMES:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._serve(message.get("text"))
            await self._socket.close(_POLICY_VIOLATION, "too many malformed frames")
        finally:
            metrics.streams_open -= 1
            tasks = [goodbye, *self._followers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_goodbye(self) -> None:
        """Close before a stopping server does, with the code that tells clients to come back."""
        await self._leaving.wait()
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
            if len(self._followers) >= MAX_SUBSCRIPTIONS:
                raise MalformedRequest(f"at most {MAX_SUBSCRIPTIONS} sessions on one socket")
            follower = Follower(self._call.services.machine, self._call.user_id, session, after)
            await follower.check()
        except RequestError as error:
            if not isinstance(error, NotFound):
                self._bad_frames += 1
            await self._send(ErrorFrame(code=error.code, detail=error.detail, session=session))
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
