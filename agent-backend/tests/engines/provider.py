"""A provider of the tests' own: a raw socket server that plays back what a test wrote, byte by byte.

The emulator speaks the protocol well; this one can speak it badly.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

Step: TypeAlias = "bytes | float | None"
"""Bytes to send, seconds to wait, or None to wait until the client closes."""


class Reply(NamedTuple):
    """One answer. Without `body` framing (`chunked` False) the end of the connection ends the body."""

    steps: Sequence[Step]
    status: str = "200 OK"
    headers: Sequence[str] = ("content-type: text/event-stream", "request-id: req_test")
    chunked: bool = True
    reset: bool = False
    """Close the connection with an RST, without the end of the body."""


class Received(NamedTuple):
    """One request."""

    line: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes


class Provider:
    """Answers each request with the next reply; the last one serves for all further requests."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = list(replies)
        self.received: list[Received] = []
        self.connections = 0
        """Connections ever accepted."""
        self.open_streams = 0
        self.changed = asyncio.Condition()
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def wait_until_no_streams(self) -> None:
        """Return when every answer has ended, or the client has left it."""
        async with self.changed, asyncio.timeout(20):
            await self.changed.wait_for(lambda: self.open_streams == 0)

    async def wait_until_streams(self, count: int) -> None:
        """Return when `count` answers are under way."""
        async with self.changed, asyncio.timeout(20):
            await self.changed.wait_for(lambda: self.open_streams == count)

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it."""
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        self.received.append(Received(head[0], headers, json.loads(raw) if raw else {}, raw))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await self._note(1)
        try:
            return await self._play(reply, reader, writer)
        finally:
            await self._note(-1)

    async def _play(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        framing = ["transfer-encoding: chunked"] if reply.chunked else ["connection: close"]
        head = [f"HTTP/1.1 {reply.status}", *reply.headers, *framing, "", ""]
        writer.write("\r\n".join(head).encode())
        for step in reply.steps:
            if step is None:
                await reader.read()
                return False
            if isinstance(step, (int, float)):
                await asyncio.sleep(step)
            elif step:
                writer.write(b"%x\r\n%b\r\n" % (len(step), step) if reply.chunked else step)
                await writer.drain()
        if reply.reset:
            writer.transport.abort()
            return False
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return reply.chunked

    async def _note(self, change: int) -> None:
        async with self.changed:
            self.open_streams += change
            self.changed.notify_all()


@asynccontextmanager
async def provider(*replies: Reply) -> AsyncGenerator[Provider]:
    """Run a provider on a free port."""
    running = Provider(replies)
    server = await asyncio.start_server(running.on_connection, "127.0.0.1", 0, limit=1 << 26)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        server.close()
        await running.stop()


def event(data: dict[str, Any]) -> bytes:
    """Return one event as the API writes it."""
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def message_start(**usage: Any) -> bytes:
    """Return the first event of an answer."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 10, "output_tokens": 1, **usage},
    }
    return event({"type": "message_start", "message": message})


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    """Return a whole content block."""
    parts = [event({"type": "content_block_start", "index": index, "content_block": content})]
    parts += [event({"type": "content_block_delta", "index": index, "delta": d}) for d in deltas]
    return b"".join([*parts, event({"type": "content_block_stop", "index": index})])


def text_block(index: int, *pieces: str) -> bytes:
    """Return a text block in pieces."""
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def tool_block(index: int, *pieces: str, id: str = "toolu_1", name: str = "get_sleep") -> bytes:  # noqa: A002 - the API's word
    """Return a tool_use block whose input arrives in pieces."""
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block(index, {"type": "tool_use", "id": id, "name": name, "input": {}}, *deltas)


def thinking_block(index: int, *pieces: str, signature: str = "c2ln") -> bytes:
    """Return a thinking block; without `signature` as if it had been cut."""
    deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
    if signature:
        deltas.append({"type": "signature_delta", "signature": signature})
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)


def message_end(stop_reason: str = "end_turn", **usage: Any) -> bytes:
    """Return the last two events of an answer."""
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    usage = {"output_tokens": 5, **usage}
    return event({"type": "message_delta", "delta": delta, "usage": usage}) + event({"type": "message_stop"})


def answer(*blocks: bytes, stop_reason: str = "end_turn") -> bytes:
    """Return a whole answer."""
    return b"".join([message_start(), *blocks, message_end(stop_reason)])
