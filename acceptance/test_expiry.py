"""Streams end with their token and go on with a fresh one: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import base64
import json
import socket as sockets
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import pytest

from .client import PATIENCE, Client, ended, say, take
from .gate import Gate
from .issuer import Issuer, issuer
from .ports import free_port
from .stack import Backend, Site

SOON = 3.0
"""Seconds to a token's end, leeway included; tokens end at whole seconds, so it can be one less."""


@pytest.fixture(scope="module")
def supabase() -> Generator[Issuer]:
    with issuer() as running:
        yield running


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def backend(site: Site, supabase: Issuer, metrics_port: int) -> Generator[Backend]:
    env = {"LEASE_SECONDS": "20", "METRICS_PORT": str(metrics_port), **supabase.env}
    with site.server("expiry", **env) as running:
        yield running
        assert running.errors() == []


@asynccontextmanager
async def signed_in(supabase: Issuer, backend: Backend, user: str, seconds: float) -> AsyncGenerator[Client]:
    """Yield a client whose token ends in `seconds`."""
    await supabase.ends_in(seconds)
    headers = await supabase.headers(user)
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session, backend.url)


async def raw(client: Client, method: str, path: str, **options: Any) -> bytes:
    """Return a whole stream, as bytes."""
    async with asyncio.timeout(PATIENCE), client.raw(method, path, **options) as response:
        assert response.status == 200, await response.text()
        return await response.read()


def cursors(stream: bytes) -> list[str]:
    return [line[4:].decode() for line in stream.split(b"\n") if line.startswith(b"id: ")]


UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n"
)


def subscribing(session: str) -> tuple[str, bytes]:
    """Return a handshake's headers and the frame that subscribes, masked with nothing (RFC 6455, 5.3)."""
    frame = json.dumps({"type": "subscribe", "session": session}).encode()
    return UPGRADE.format(base64.b64encode(bytes(16)).decode()), b"\x81" + bytes(
        [0x80 | len(frame), 0, 0, 0, 0]
    ) + frame


async def unread(
    client: Client, headers: dict[str, str], path: str, more: tuple[str, bytes] = ("", b"")
) -> sockets.socket:
    """Open a stream that nobody reads, with the smallest of buffers."""
    opened = sockets.socket()
    opened.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    opened.setblocking(False)
    parts = urlsplit(client.url)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, (parts.hostname, parts.port))
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
    await loop.sock_sendall(opened, f"{head}{more[0]}\r\n".encode())
    if more[1]:
        assert (await loop.sock_recv(opened, 12)).endswith(b"101")
        await loop.sock_sendall(opened, more[1])
    return opened


async def to_the_end(client: Client) -> tuple[list[str], int | None]:
    """Open a socket and wait; return the frames' types and the code it was closed with."""
    async with asyncio.timeout(PATIENCE), client.socket() as socket:
        types = [json.loads(message.data)["type"] async for message in socket]
        return types, socket.close_code


async def test_whatever_is_open_ends_with_its_token_and_says_so(
    site: Site, backend: Backend, supabase: Issuer, metrics_port: int, http: aiohttp.ClientSession
) -> None:
    async def open_streams() -> float:
        async with http.get(f"http://127.0.0.1:{metrics_port}/metrics") as response:
            lines = (await response.text()).splitlines()
        return float(next(line for line in lines if line.startswith("streams_open")).split()[1])

    gate = Gate(site, after=9)
    user, text = f"u{uuid4().hex[:8]}", say(tokens=40, **gate.keys)
    async with signed_in(supabase, backend, user, 3600) as lasting:
        sessions = [await lasting.new_session() for _ in range(3)]
        await lasting.begin(sessions[2], say(text="x" * 2000, tokens=1500, delay_ms=0))
        run = {"threadId": str(uuid4()), "runId": str(uuid4())}
        run |= {"messages": [{"id": "m", "role": "user", "content": text}]}
        turn = f"/v1/sessions/{sessions[0]}/turns/{uuid4()}"
        await supabase.ends_in(SOON)
        headers = await supabase.headers(user)
        async with aiohttp.ClientSession(headers=headers) as ending_http:
            ending = Client(ending_http, backend.url)
            began = asyncio.get_running_loop().time()
            *streams, (frames, code), nobody, no_one = await asyncio.gather(
                raw(ending, "PUT", turn, json={"content": text}, headers={"Accept": "text/event-stream"}),
                raw(ending, "GET", f"/v1/sessions/{sessions[1]}/events"),
                raw(ending, "POST", "/v1/agui/coach", json=run),
                to_the_end(ending),
                unread(ending, headers, f"/v1/sessions/{sessions[2]}/events"),
                unread(ending, headers, "/v1/stream", subscribing(sessions[2])),
            )
            assert asyncio.get_running_loop().time() - began < SOON + 2
            for stream in streams:
                assert stream.endswith(b"retry: 1000\n\n")
            assert (frames, code) == (["token_expiring"], 4401)
            assert (await ending.call("GET", "/v1/sessions"))[0] == 401
        # Whoever does not read, cannot be told; but it keeps nobody awake.
        with nobody, no_one:
            async with asyncio.timeout(PATIENCE):
                while await open_streams() > 0:
                    await asyncio.sleep(0.05)
        # The turn goes on; a fresh token and the cursor bring the rest.
        await gate.open()
        got = cursors(streams[0])
        rest = await take(lasting.sse(sessions[0], got[-1]), ended)
        whole = await lasting.log(sessions[0])
        assert got + [each.place for each in rest] == [each.place for each in whole]


class Socket:
    """A WebSocket's frames, decoded."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, **frame: Any) -> None:
        await self.socket.send_json(frame)

    async def hear(self) -> dict[str, Any]:
        return json.loads(await self.socket.receive_str(timeout=PATIENCE))

    async def closed(self) -> int | None:
        """Read on to the end; return the code it was closed with."""
        async with asyncio.timeout(PATIENCE):
            while (await self.socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        return self.socket.close_code


async def test_a_socket_lives_on_with_a_fresh_token(backend: Backend, supabase: Issuer) -> None:
    user = f"u{uuid4().hex[:8]}"
    async with (
        signed_in(supabase, backend, user, 3600) as lasting,
        signed_in(supabase, backend, user, SOON) as ending,
        ending.socket() as opened,
    ):
        session = await lasting.new_session()
        await lasting.begin(session, say(tokens=100, delay_ms=20))
        socket, places = Socket(opened), list[str]()
        await socket.say(type="subscribe", session=session)
        await supabase.ends_in(3600)
        kinds: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while not {"token_expiring", "authenticated", "RUN_FINISHED"} <= kinds:
                frame = await socket.hear()
                kinds.add(frame["type"])
                if "metadata" in frame:
                    places.append(frame["metadata"]["cursor"])
                if frame["type"] == "token_expiring":
                    await socket.say(type="authenticate", token=await supabase.token(user))
        assert places == [each.place for each in await lasting.log(session)]


async def test_nobody_else_may_take_a_socket_over(backend: Backend, supabase: Issuer) -> None:
    async with signed_in(supabase, backend, "alice", 3600) as client, client.socket() as opened:
        socket = Socket(opened)
        await socket.say(type="authenticate", token="a.b.c")
        assert (await socket.hear())["code"] == "unauthorized"
        await socket.say(type="ping")
        assert (await socket.hear())["type"] == "pong"
        await socket.say(type="authenticate", token=await supabase.token("mallory"))
        assert await socket.closed() == 1008


async def test_tokens_cannot_be_guessed_on_one_socket(backend: Backend, supabase: Issuer) -> None:
    async with signed_in(supabase, backend, "alice", 3600) as client, client.socket() as opened:
        socket = Socket(opened)
        for n in range(10):
            await socket.say(type="authenticate", token=f"a.b.{n}")
        assert await socket.closed() == 1008
