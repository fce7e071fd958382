"""Server-sent events: a session's events, or one turn's, as text/event-stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agent_backend import events as agui
from agent_backend.errors import NotFound
from agent_backend.telemetry import metrics
from agent_backend.web.limits import Limits
from agent_backend.web.operations import Call, EventStream, operation
from agent_backend.web.stream import CutOff, Follower, Placed, parse_cursor

HEARTBEAT_SECONDS = 15.0
"""Middleboxes give up on silent connections; Fly's proxy has an undocumented idle limit."""

RETRY = b"retry: 1000\n\n"

_GOODBYE_SECONDS = 1.0
"""What a reader that does not read has to take the end of its stream."""

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    # Proxies that compress would hold events back.
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


def frames(batch: list[Placed], thread_id: str) -> bytes:
    """Return a batch as SSE frames; events without a place of their own carry no id."""
    parts: list[bytes] = []
    for cursor, event in batch:
        if cursor is None:
            parts.append(b"data: " + agui.positioned(event, thread_id, None) + b"\n\n")
        else:
            place = f"{cursor.epoch}-{cursor.n}"
            parts.append(f"id: {place}\ndata: ".encode() + agui.positioned(event, thread_id, place) + b"\n\n")
    return parts[0] if len(parts) == 1 else b"".join(parts)


class EventStreamResponse(Response):
    """Streams batches until they end, the client goes away or its token ends, with heartbeats in between.

    `until` is when that is (Principal.streams_until): then the client comes back with a fresh token and its
    cursor, as after any cut.
    """

    def __init__(
        self,
        batches: AsyncGenerator[list[Placed]],
        thread_id: str,
        *,
        until: float,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, status, {**STREAM_HEADERS, **(headers or {})})
        # A stream has no length; Starlette has noted an empty body's.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._batches = batches
        self._thread_id = thread_id
        self._until = until
        self._was_cut = False
        self._over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. A reader that is cut off sees its connection end and comes back."""
        metrics.streams_open += 1
        async with AsyncExitStack() as stack:
            stack.callback(_stream_closed)
            batches = await stack.enter_async_context(aclosing(self._batches))
            # Who asks has been checked: the headers go out at once, however long the first event takes.
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            writing = asyncio.current_task()
            watching = asyncio.create_task(_watch(receive, send, writing, self._until))
            stack.callback(watching.cancel)
            limits: Limits = scope["state"]["services"].limits
            stack.enter_context(limits.stream(scope, scope["user_id"], partial(self._cut, writing)))
            try:
                await self._write(batches, send)
            except asyncio.CancelledError:
                gone = watching.done()
                if writing is None or not self._meant(writing, gone=gone):
                    raise
                # From here on nobody ends us once more: the rest has an end of its own.
                self._over = True
                watching.cancel()
                if not gone or watching.result() == "token_ended":
                    await _say_goodbye(send)

    async def _write(self, batches: AsyncGenerator[list[Placed]], send: Send) -> None:
        """Send the batches and the stream's end; all of it waits for the reader, and all of it can be cut."""
        try:
            async for batch in batches:
                if batch:
                    await send(_chunk(frames(batch, self._thread_id)))
        except CutOff:
            await send(_chunk(RETRY))
        except NotFound:
            pass  # erased meanwhile: whoever asks again is told
        await send(_END)

    def _cut(self, writing: asyncio.Task[object] | None) -> None:
        """End the stream in favour of a newer one of the same user."""
        if writing is not None and not self._over:
            self._was_cut = True
            writing.cancel()

    def _meant(self, writing: asyncio.Task[object], *, gone: bool) -> bool:
        """Take back the cancellations that are ours, and say whether there were no others."""
        for _ in range(gone + self._was_cut):
            writing.uncancel()
        return (gone or self._was_cut) and not writing.cancelling()


_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


async def _say_goodbye(send: Send) -> None:
    """End a stream whose time is over; a reader that takes nothing any more is cut."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await send(_chunk(RETRY))
            await send(_END)


def _stream_closed() -> None:
    metrics.streams_open -= 1


def _chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _watch(
    receive: Receive, send: Send, writing: asyncio.Task[object] | None, until: float
) -> Literal["client_gone", "token_ended"]:
    """Send heartbeats, and stop the writer when the client goes away or its token ends; say which.

    The wall clock is asked at each heartbeat: after a freeze the other one knows nothing of the time that
    has passed.
    """
    while (left := until - time.time()) > 0:
        beat = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS
        try:
            async with asyncio.timeout(min(HEARTBEAT_SECONDS, left)):
                message = await receive()
        except TimeoutError:
            if asyncio.get_running_loop().time() >= beat:
                await _beat(send, until)
            continue
        if message["type"] == "http.disconnect":
            if writing is not None:
                writing.cancel()
            return "client_gone"
    if writing is not None:
        writing.cancel()
    return "token_ended"


async def _beat(send: Send, until: float) -> None:
    """Send a heartbeat; while a reader takes nothing, it waits until the token ends."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, until - time.time())):
            await send(_chunk(b": hb\n\n"))


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to start, and whether to wait for what comes (`wait=0` ends at the present)."""

    after: str | None = None
    wait: int = 1


@operation(
    "GET",
    "/v1/sessions/{session_id}/events",
    summary="Follow a session's events",
    description="AG-UI events after a cursor (`after`, or the header Last-Event-ID), then live.",
    tag="sessions",
    query=EventsQuery,
    stream=EventStream("The session's events.", agui.Event),
    problems=(400, 404),
)
async def follow_session(call: Call[None, EventsQuery]) -> Response:
    """Stream the session from the cursor on; without one, from its beginning."""
    given = call.query.after
    field, text = (
        ("query.after", given) if given is not None else ("Last-Event-ID", call.header(b"last-event-id"))
    )
    session_id = call.uuid("session_id")
    follower = Follower(call.services.machine, call.user_id, session_id, parse_cursor(text, field))
    await follower.check()
    batches = follower.batches(wait=call.query.wait != 0)
    return EventStreamResponse(batches, str(session_id), until=call.principal.streams_until)


OPERATIONS = (follow_session,)
