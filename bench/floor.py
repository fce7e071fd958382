"""The floor: a relay with nothing around it, in the same stack and under the same uvicorn settings.

Starlette, uvicorn (uvloop, httptools), aiohttp, msgspec. It decodes each event of the model, writes it as an
AG-UI event and sends it as SSE. No user, no store, no resume, no limit, no retry: whatever a server costs
above this is what those cost. Run as a program it serves on PORT and asks ANTHROPIC_BASE_URL.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""


class _ModelEvent(msgspec.Struct):
    type: str
    delta: _Delta | None = None


class _Turn(msgspec.Struct):
    content: str


class _Started(msgspec.Struct, tag_field="type", tag="RUN_STARTED", rename="camel"):
    thread_id: str
    run_id: str


class _Opened(msgspec.Struct, tag_field="type", tag="TEXT_MESSAGE_START", rename="camel"):
    message_id: str
    role: str = "assistant"


class _Content(msgspec.Struct, tag_field="type", tag="TEXT_MESSAGE_CONTENT", rename="camel"):
    message_id: str
    delta: str


class _Closed(msgspec.Struct, tag_field="type", tag="TEXT_MESSAGE_END", rename="camel"):
    message_id: str


class _Finished(msgspec.Struct, tag_field="type", tag="RUN_FINISHED", rename="camel"):
    thread_id: str
    run_id: str


_encode = msgspec.json.Encoder().encode
_decode_event = msgspec.json.Decoder(_ModelEvent).decode
_decode_turn = msgspec.json.Decoder(_Turn).decode
_HEADERS = {
    "x-api-key": "bench",
    "anthropic-version": "2026-10-21",
    "content-type": "application/json",
    "accept-encoding": "identity",
}


def request_body(text: str) -> bytes:
    """Return the least request that has a text streamed back."""
    return _encode(
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 4096,
            "stream": True,
            "thinking": {"type": "disabled"},
            "messages": [{"role": "user", "content": text}],
        }
    )


def _events(payload: bytes, turn: str) -> bytes:
    """Return what one event of the model becomes."""
    event = _decode_event(payload)
    match event.type:
        case "content_block_delta" if event.delta is not None:
            made: Any = _Content(turn, event.delta.text)
        case "message_start":
            made = _Started(turn, turn)
        case "content_block_start":
            made = _Opened(turn)
        case "content_block_stop":
            made = _Closed(turn)
        case "message_stop":
            made = _Finished(turn, turn)
        case _:
            return b""
    return b"data: " + _encode(made) + b"\n\n"


async def _relay(answer: aiohttp.ClientResponse, turn: str) -> AsyncGenerator[bytes]:
    rest = b""
    async with answer:
        async for chunk in answer.content.iter_any():
            *frames, rest = (rest + chunk).split(b"\n\n")
            out = b"".join([_events(frame[frame.index(b"data: ") + 6 :], turn) for frame in frames])
            if out:
                yield out


async def _turn(request: Request) -> Response:
    turn = _decode_turn(await request.body())
    session: aiohttp.ClientSession = request.state.session
    answer = await session.post("/v1/messages", data=request_body(turn.content))
    return StreamingResponse(
        _relay(answer, request.path_params["id"]),
        headers={"content-type": "text/event-stream", "cache-control": "no-cache"},
    )


async def _ready(_request: Request) -> Response:
    return Response(b"{}")


@asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncGenerator[dict[str, aiohttp.ClientSession]]:
    session = aiohttp.ClientSession(
        os.environ["ANTHROPIC_BASE_URL"],
        connector=aiohttp.TCPConnector(limit=0),
        headers=_HEADERS,
        timeout=aiohttp.ClientTimeout(total=None),
    )
    async with session:
        yield {"session": session}


def main() -> None:
    """Serve until a signal."""
    app = Starlette(
        routes=[Route("/turns/{id}", _turn, methods=["PUT"]), Route("/readyz", _ready)], lifespan=_lifespan
    )
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=20,
    )


if __name__ == "__main__":
    main()
