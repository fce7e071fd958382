"""Server-sent events: a session's events, or one turn's, as text/event-stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agent_backend import events as agui
from agent_backend.telemetry import metrics
from agent_backend.web.operations import Call, EventStream, operation
from agent_backend.web.stream import CutOff, Follower, Placed, parse_cursor

HEARTBEAT_SECONDS = 15.0
"""Middleboxes give up on silent connections; Fly's proxy has an undocumented idle limit."""

RETRY = b"retry: 1000\n\n"

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
    """Streams batches until they end or the client goes away, with heartbeats in between."""

    def __init__(
        self,
        batches: AsyncGenerator[list[Placed]],
        thread_id: str,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, status, {**STREAM_HEADERS, **(headers or {})})
        # A stream has no length; Starlette has noted an empty body's.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._batches = batches
        self._thread_id = thread_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
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
            watching = asyncio.create_task(_watch(receive, send, writing))
            stack.callback(watching.cancel)
            try:
                async for batch in batches:
                    if not batch:
                        continue
                    await send(_chunk(frames(batch, self._thread_id)))
            except CutOff:
                await send(_chunk(RETRY))
            except asyncio.CancelledError:
                if not watching.done() or writing is None or writing.uncancel() > 0:
                    raise
                return  # the client went away
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _stream_closed() -> None:
    metrics.streams_open -= 1


def _chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _watch(receive: Receive, send: Send, writing: asyncio.Task[object] | None) -> None:
    """Send heartbeats, and stop the writer when the client goes away."""
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                message = await receive()
        except TimeoutError:
            await send(_chunk(b": hb\n\n"))
            continue
        if message["type"] == "http.disconnect":
            if writing is not None:
                writing.cancel()
            return


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
    return EventStreamResponse(follower.batches(wait=call.query.wait != 0), str(session_id))


OPERATIONS = (follow_session,)
