"""A client as an app would have one: HTTP, SSE and WebSocket, byte for byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import uuid4

import aiohttp
from yarl import URL

PATIENCE = 20.0
"""Seconds a test waits for something before it fails."""

Transport: TypeAlias = Literal["sse", "ws"]
TRANSPORTS: tuple[Transport, ...] = ("sse", "ws")
FINAL = {"completed", "failed", "cancelled"}


class Received(NamedTuple):
    """An event as it came: its SSE id (over WebSocket its metadata.cursor) and the exact text of its data."""

    cursor: str | None
    data: str

    @property
    def place(self) -> str:
        """Its cursor; it must have one."""
        assert self.cursor is not None, self.data
        return self.cursor

    @property
    def event(self) -> dict[str, Any]:
        """The event, decoded."""
        return json.loads(self.data)

    @property
    def type(self) -> str:
        """Its AG-UI type."""
        return self.event["type"]


Until: TypeAlias = Callable[[list[Received]], bool]


def say(message: str = "Hello", /, **directive: Any) -> str:
    """Return a user message that fixes the emulator's answer."""
    pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in directive.items())
    return f"{message} [[emulator: {pairs}]]"


def ended(events: list[Received]) -> bool:
    """Say whether the last event ends a run."""
    return bool(events) and events[-1].type in ("RUN_FINISHED", "RUN_ERROR")


def ends(count: int) -> Until:
    """Return a condition: so many runs have ended."""
    return lambda events: sum(each.type in ("RUN_FINISHED", "RUN_ERROR") for each in events) >= count


def seen(kind: str, count: int = 1) -> Until:
    """Return a condition: so many events of a type have come."""
    return lambda events: sum(each.type == kind for each in events) >= count


async def frames(response: aiohttp.ClientResponse) -> AsyncGenerator[Received]:
    """Parse an SSE response, bytes by bytes."""
    buffer = b""
    async for chunk in response.content.iter_any():
        buffer += chunk
        while (end := buffer.find(b"\n\n")) >= 0:
            frame, buffer = buffer[:end].decode(), buffer[end + 2 :]
            fields = dict(line.split(": ", 1) for line in frame.split("\n") if not line.startswith(":"))
            if "data" in fields:
                assert set(fields) <= {"id", "data"}, frame
                yield Received(fields.get("id"), fields["data"])
    assert not buffer, f"a torn frame: {buffer[:200]!r}"


async def take(stream: AsyncGenerator[Received], until: Until | int | None = None) -> list[Received]:
    """Collect events up to a count or a condition, or (None) to the stream's end; then close the stream."""
    events: list[Received] = []
    if until == 0:
        return events
    async with asyncio.timeout(PATIENCE), aclosing(stream):
        async for received in stream:
            events.append(received)
            if until is not None and (len(events) == until if isinstance(until, int) else until(events)):
                return events
    assert until is None, f"the stream ended early: {[each.type for each in events]}"
    return events


_consenting: set[str] = set()
"""Tokens whose users have agreed to everything."""


async def consent(http: aiohttp.ClientSession, url: str, *, again: bool = False) -> None:
    """Give every consent that is asked for, once per user or `again`. Raises aiohttp.ClientError."""
    token = http.headers["Authorization"]
    if token in _consenting and not again:
        return
    async with http.get(url + "/v1/consents", raise_for_status=True) as response:
        texts = (await response.json())["consents"]
    for text in texts:
        body = {"version": text["version"], "text_hash": text["sha256"], "locale": text["locale"]}
        path = f"{url}/v1/me/consents/{text['purpose']}"
        async with http.put(path, json=body, raise_for_status=True) as response:
            await response.read()
    _consenting.add(token)


class Client:
    """One user at one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    # --- requests ---

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Send a request; return status and decoded body."""
        async with (
            asyncio.timeout(PATIENCE),
            self.raw(method, path, **options) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if text else None

    def raw(self, method: str, path: str, **options: Any) -> Any:
        """Send a request whose path is not to be quoted again; an async context manager of the response."""
        return self._session.request(method, URL(self.url + path, encoded=True), **options)

    async def consent(self, *, again: bool = False) -> None:
        """Let the user agree to everything that is asked for, once or `again`."""
        await consent(self._session, self.url, again=again)

    async def new_session(
        self, agent: str = "coach", *, device_tools: list[dict[str, Any]] | None = None
    ) -> str:
        """Make a session and return its id; the user agrees to everything first."""
        await self.consent()
        session = str(uuid4())
        asked = {"agent": agent} | ({"device_tools": device_tools} if device_tools else {})
        status, body = await self.call("PUT", f"/v1/sessions/{session}", json=asked)
        assert status == 201, body
        return session

    async def put_turn(
        self, session: str, content: str, *, turn: str | None = None, on_busy: str | None = None
    ) -> tuple[int, Any]:
        """Send a message; the body that comes back holds the turn's id, state and cursor."""
        body = {"content": content} | ({"on_busy": on_busy} if on_busy else {})
        return await self.call("PUT", f"/v1/sessions/{session}/turns/{turn or uuid4()}", json=body)

    async def begin(self, session: str, content: str, **options: Any) -> dict[str, Any]:
        """Send a message that must be taken; return the turn."""
        status, body = await self.put_turn(session, content, **options)
        assert status == 202, body
        return body

    async def turn(self, session: str, turn: str) -> dict[str, Any]:
        """Read a turn."""
        status, body = await self.call("GET", f"/v1/sessions/{session}/turns/{turn}")
        assert status == 200, body
        return body

    async def cancel(self, session: str, turn: str) -> dict[str, Any]:
        """Ask a turn to stop."""
        status, body = await self.call("POST", f"/v1/sessions/{session}/turns/{turn}/cancel")
        assert status == 202, body
        return body

    async def messages(self, session: str) -> list[dict[str, Any]]:
        """Read the settled conversation."""
        status, body = await self.call("GET", f"/v1/sessions/{session}/messages")
        assert status == 200, body
        return body["messages"]

    # --- streams ---

    async def answer(
        self, session: str, content: str, *, turn: str | None = None, **headers: str
    ) -> AsyncGenerator[Received]:
        """Send a message and stream its turn from the same request."""
        url = f"{self.url}/v1/sessions/{session}/turns/{turn or uuid4()}"
        sent = {"Accept": "text/event-stream", **headers}
        async with self._session.put(url, json={"content": content}, headers=sent) as response:
            assert response.status == 200, await response.text()
            async with aclosing(frames(response)) as events:
                async for received in events:
                    yield received

    async def follow(
        self, transport: Transport, session: str, after: str | None = None
    ) -> AsyncGenerator[Received]:
        """Follow a session from a cursor over the given transport."""
        source = self.sse(session, after) if transport == "sse" else self.ws(session, after)
        async with aclosing(source):
            async for received in source:
                yield received

    async def sse(
        self, session: str, after: str | None = None, *, wait: bool = True, by_header: bool = False
    ) -> AsyncGenerator[Received]:
        """Follow a session over SSE; without `wait` up to the present."""
        query = {"wait": "1" if wait else "0"} | ({"after": after} if after and not by_header else {})
        headers = {"Last-Event-ID": after} if after and by_header else {}
        url = f"{self.url}/v1/sessions/{session}/events"
        async with self._session.get(url, params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            async with aclosing(frames(response)) as events:
                async for received in events:
                    yield received

    async def log(self, session: str, after: str | None = None) -> list[Received]:
        """Read everything after a cursor, up to the present."""
        return await take(self.sse(session, after, wait=False))

    async def ws(self, session: str, after: str | None = None) -> AsyncGenerator[Received]:
        """Follow a session over a WebSocket of its own."""
        async with self.socket() as socket:
            await socket.send_json({"type": "subscribe", "session": session, "after": after})
            assert await socket.receive_json() == {"type": "subscribed", "session": session}
            async for message in socket:
                assert message.type is aiohttp.WSMsgType.TEXT, message
                event = json.loads(message.data)
                if event["type"] == "unsubscribed":
                    assert event == {"type": "unsubscribed", "session": session, "resume": True}
                    return
                assert event["metadata"]["threadId"] == session
                yield Received(event["metadata"].get("cursor"), message.data)

    def socket(self) -> Any:
        """Open the WebSocket; an async context manager."""
        return self._session.ws_connect(self.url + "/v1/stream", max_msg_size=0)

    async def finished(self, session: str, turn: str, transport: Transport = "sse") -> list[Received]:
        """Wait for a turn's end and return the session's whole log."""
        position = (await self.turn(session, turn))["cursor"]

        def over(events: list[Received]) -> bool:
            started = [i for i, each in enumerate(events) if each.event.get("runId") == turn]
            return bool(started) and ended(events[started[0] + 1 :][-1:] or events[-1:])

        await take(self.follow(transport, session, position), over)
        return await self.log(session)
