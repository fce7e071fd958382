"""Readers that fall behind, over real sockets: they are cut, nobody waits for them, and they lose nothing."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiohttp
import pytest
from starlette.routing import Router

from agent_backend import consents
from agent_backend import events as agui
from agent_backend.agents import load_agents
from agent_backend.app import OPERATIONS, SOCKETS
from agent_backend.auth import Authenticator
from agent_backend.db.pool import Database
from agent_backend.engines.limits import Timeouts
from agent_backend.engines.messages import MessagesEngine
from agent_backend.prices import models
from agent_backend.settings import Settings
from agent_backend.turns.fanout import MAX_BACKLOG, LiveSession
from agent_backend.turns.machine import Machine
from agent_backend.web.operations import routes, unknown_path
from agent_backend.web.services import Services

from ..consenting import agree
from ..emulator import emulator
from .serving import headers_for, serving, settings_for

PATIENCE = 20.0


class Running(NamedTuple):
    """A served machine and a client of it."""

    machine: Machine
    http: aiohttp.ClientSession
    settings: Settings
    url: str


@pytest.fixture
async def running(tmp_path: Path, database_url: str, database: Database) -> AsyncGenerator[Running]:
    """Serve a machine whose model is given up after a second of silence."""
    settings = settings_for(tmp_path, database_url)
    with emulator() as model:
        engine = MessagesEngine(model, "sk-test", timeouts=Timeouts(first_event=30, idle=1.0))
        agents = load_agents(settings.agents_dir, {}, {"messages": engine}, models())
        machine = Machine(
            database,
            machine_id="one",
            lease_seconds=30,
            group_commit_seconds=0.02,
            agents=agents,
            tools={},
            engines={"messages": engine},
            consents=consents.load(),
        )
        authenticator = Authenticator(
            jwks_url=settings.jwks_url, issuer=settings.auth_issuer, audience=settings.auth_audience
        )
        services = Services(
            settings=settings,
            database=database,
            machine=machine,
            authenticator=authenticator,
            agents=agents,
            consents=consents.load(),
        )

        @asynccontextmanager
        async def lifespan(_app: object) -> AsyncGenerator[dict[str, Services]]:
            await machine.start()
            yield {"services": services}
            await machine.stop()

        app = Router(routes(OPERATIONS, SOCKETS), default=unknown_path, lifespan=lifespan)
        async with (
            serving(app, settings) as url,
            aiohttp.ClientSession(url, headers=headers_for(settings)) as http,
        ):
            await agree(http)
            yield Running(machine, http, settings, url)


async def _put(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with http.put(path, json=body) as response:
        assert response.status < 300, await response.text()
        return await response.json()


async def _silent_turn(running: Running) -> tuple[str, str, LiveSession]:
    """Begin a turn whose model says nothing for a while; return session, turn and its owner's end."""
    session, turn = str(uuid4()), str(uuid4())
    await _put(running.http, f"/v1/sessions/{session}", {"agent": "coach"})
    content = "[[emulator: ttft_ms=25000 tokens=1]]"
    await _put(running.http, f"/v1/sessions/{session}/turns/{turn}", {"content": content})
    return session, turn, running.machine.hub.live[UUID(session)]


def _flood(live: LiveSession) -> None:
    """Publish more than a reader may be behind, and more than the sockets' buffers hold."""
    piece = agui.encode(agui.TextMessageContent(message_id="m", delta="x" * 8_000))
    for _ in range(MAX_BACKLOG + 500):
        live.publish_unsettled([piece])


async def _log(running: Running, session: str, after: str = "") -> list[str]:
    """Return the cursors of all events after a cursor."""
    url = f"/v1/sessions/{session}/events"
    async with (
        asyncio.timeout(PATIENCE),
        running.http.get(url, params={"after": after, "wait": "0"}) as response,
    ):
        return _cursors(await response.read())


def _cursors(stream: bytes) -> list[str]:
    return [line[4:].decode() for line in stream.split(b"\n") if line.startswith(b"id: ")]


async def test_a_slow_sse_reader_is_cut_with_a_hint_and_resumes_without_loss(running: Running) -> None:
    session, _, live = await _silent_turn(running)
    reader, writer = await _unread(running, f"/v1/sessions/{session}/events")
    head = await asyncio.wait_for(reader.readuntil(b"RUN_STARTED"), PATIENCE)
    _flood(live)
    rest = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    got = _cursors(head + rest)
    whole = await _log(running, session)
    assert b"retry: 1000\n\n" in rest
    assert 1 <= len(got) < len(whole) == MAX_BACKLOG + 501
    assert got == whole[: len(got)]
    assert await _log(running, session, got[-1]) == whole[len(got) :]


async def _unread(running: Running, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream with the smallest of buffers."""
    parts = urlsplit(running.url)
    opened = sockets.socket()
    opened.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    opened.connect((parts.hostname or "", parts.port or 0))
    reader, writer = await asyncio.open_connection(sock=opened, limit=4096)
    token = headers_for(running.settings)["Authorization"]
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    return reader, writer


async def test_a_slow_websocket_reader_is_told_to_resume_and_the_socket_stays(running: Running) -> None:
    session, _, live = await _silent_turn(running)
    async with asyncio.timeout(PATIENCE), running.http.ws_connect("/v1/stream") as socket:
        await socket.send_json({"type": "subscribe", "session": session})
        assert (await socket.receive_json())["type"] == "subscribed"
        got = [(await socket.receive_json())["metadata"]["cursor"]]
        _flood(live)
        while (event := json.loads(await socket.receive_str()))["type"] != "unsubscribed":
            got.append(event["metadata"]["cursor"])
        assert event == {"type": "unsubscribed", "session": session, "resume": True}
        whole = await _log(running, session)
        assert len(got) < len(whole)
        assert got == whole[: len(got)]
        await socket.send_json({"type": "subscribe", "session": session, "after": got[-1]})
        assert (await socket.receive_json())["type"] == "subscribed"
        while len(got) < len(whole):
            got.append((await socket.receive_json())["metadata"]["cursor"])
        assert got == whole


async def test_a_client_that_goes_away_leaves_nothing_behind(running: Running) -> None:
    session, _, live = await _silent_turn(running)
    url = f"/v1/sessions/{session}/events"
    for _ in range(3):
        async with asyncio.timeout(PATIENCE), running.http.get(url) as response:
            await response.content.readuntil(b"RUN_STARTED")
            assert len(live._subscribers) == 1
            response.close()
        async with asyncio.timeout(PATIENCE):
            while live._subscribers:
                await asyncio.sleep(0)
    assert session not in map(str, running.machine.hub._remote)


async def test_a_model_that_falls_silent_ends_the_turn_and_its_text_is_kept(running: Running) -> None:
    session, turn = str(uuid4()), str(uuid4())
    await _put(running.http, f"/v1/sessions/{session}", {"agent": "coach"})
    content = '[[emulator: tokens=9 fault="stall;after=4"]]'
    url = f"/v1/sessions/{session}/turns/{turn}"
    headers = {"Accept": "text/event-stream"}
    async with (
        asyncio.timeout(PATIENCE),
        running.http.put(url, json={"content": content}, headers=headers) as r,
    ):
        stream = await r.read()
    last = json.loads(stream.rstrip().rpartition(b"data: ")[2])
    assert (last["type"], last["code"]) == ("RUN_ERROR", "provider_idle_timeout")
    async with running.http.get(f"/v1/sessions/{session}/messages") as response:
        said = (await response.json())["messages"][-1]
    assert (said["role"], len(said["content"].split())) == ("assistant", 4)
