"""When the server sleeps and when it must not: real processes, and a peer in place of the machine's API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import psutil
import pytest
from aiohttp import web

from agent_backend import consents
from agent_backend.db.pool import Database
from agent_backend.devtoken import user_id
from agent_backend.settings import Settings

from .consenting import give_consents
from .emulator import emulator
from .ports import free_port
from .web.serving import headers_for, settings_for

PATIENCE = 30
ASKED = "1"
"""IDLE_SECONDS where the test has to ask before the server sleeps: a busy machine takes its time."""

FREEZE_SECONDS = 1.0
"""How long a server is frozen that is to notice it."""
UNNOTICED_SECONDS = 10.0
"""After so long a server that has noticed nothing goes on."""


@pytest.fixture(scope="module")
def model() -> Generator[str]:
    with emulator() as url:
        yield url


class Process:
    """One `agent-backend serve`; `log` grows as it writes."""

    def __init__(self, settings: Settings, env: dict[str, str]) -> None:
        self._env = env
        self._headers = headers_for(settings)
        self.log: list[dict[str, Any]] = []
        self.url = ""
        self._news = asyncio.Event()

    async def start(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "PYTHONPATH"}}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_backend", "serve"),
            env={**inherited, **self._env},
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        self.url = f"http://127.0.0.1:{self._env['PORT']}"
        await self.told("ready")

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(json.loads(line))
            self._news.set()
        self._news.set()

    async def told(self, action: str, count: int = 1) -> dict[str, Any]:
        """Wait until it has logged an action so often."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._news.clear()
                lines = [line for line in self.log if line["action"] == action]
                if len(lines) >= count:
                    return lines[count - 1]
                assert not self._reading.done(), self.log
                await self._news.wait()

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            await self._reading
        return code

    async def end(self) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
        await self.ended()

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(self.url, headers=self._headers, connector=connector) as http:
            yield http


@pytest.fixture
async def server(
    tmp_path: Path, database_url: str, database: Database, model: str
) -> AsyncGenerator[Process]:
    await give_consents(database, user_id("alice"), consents.load())
    settings = settings_for(tmp_path, database_url)
    env = {
        "DATABASE_URL": database_url,
        "AGENTS_DIR": str(settings.agents_dir),
        "DEV_KEY_DIR": str(settings.dev_key_dir),
        "METRICS_PORT": "0",
        "PORT": str(free_port()),
        "MACHINE_ID": "m1",
        "ANTHROPIC_BASE_URL": model,
        "ANTHROPIC_API_KEY": "sk-test",
        "SLEEP": "exit",
        "IDLE_SECONDS": "0.4",
        "LEASE_SECONDS": "3",
        "DRAIN_SECONDS": "5",
        "FLY_API_SOCKET": str(tmp_path / "api.sock"),
    }
    process = Process(settings, env)
    yield process
    await process.end()


async def _begin(http: aiohttp.ClientSession, text: str) -> tuple[str, str]:
    session, turn = str(uuid4()), str(uuid4())
    async with http.put(f"/v1/sessions/{session}", json={"agent": "coach"}) as response:
        assert response.status == 201
    async with http.put(f"/v1/sessions/{session}/turns/{turn}", json={"content": text}) as response:
        assert response.status == 202
    return session, turn


async def test_an_idle_server_ends_with_0_and_says_goodbye(server: Process, database_url: str) -> None:
    await server.start()
    assert await server.ended() == 0
    assert [line["action"] for line in server.log][-1] == "falling_asleep"
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM myhealth.machines") == 0
    await connection.close()


async def test_health_checks_and_strangers_keep_nobody_awake(server: Process) -> None:
    await server.start()

    async def bother() -> None:
        async with aiohttp.ClientSession(server.url) as http:
            while True:
                for path in ("/readyz", "/livez", "/v1/sessions", "/wp-login.php"):
                    async with http.get(path) as response:
                        await response.read()

    bothering = asyncio.create_task(bother())
    assert await server.ended() == 0
    with pytest.raises(aiohttp.ClientError):
        await bothering


async def test_a_turn_that_nobody_watches_is_finished_first(server: Process, database_url: str) -> None:
    server._env.update(DRAIN_SECONDS="0.2", IDLE_SECONDS=ASKED)  # nor is it the drain that finishes it
    await server.start()
    async with server.client() as http:
        session, turn = await _begin(http, "[[emulator: tokens=40 delay_ms=50]]")
    assert await server.ended() == 0
    connection = await asyncpg.connect(database_url)
    state = await connection.fetchval(
        "SELECT state FROM myhealth.turns WHERE session_id = $1 AND id = $2", session, turn
    )
    await connection.close()
    assert state == "completed"


async def test_a_reader_keeps_the_server_awake(server: Process) -> None:
    server._env["IDLE_SECONDS"] = ASKED
    await server.start()
    async with server.client() as http:
        session, turn = await _begin(http, "[[emulator: tokens=1]]")
        async with http.get(f"/v1/sessions/{session}/events") as stream:
            while b"RUN_FINISHED" not in (line := await stream.content.readline()):
                assert line
            # As long as it sleeps after without us, and longer.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await server.process.wait()
    assert await server.ended() == 0
    assert turn


async def test_work_that_an_owner_who_is_gone_has_left_keeps_the_server_awake(
    server: Process, database_url: str
) -> None:
    server._env["IDLE_SECONDS"] = ASKED
    await server.start()
    async with server.client() as http:
        session, turn = await _begin(http, "[[emulator: tokens=60 delay_ms=20]]")
    connection = await asyncpg.connect(database_url)
    server.process.kill()
    await server.ended()
    server.log.clear()
    await server.start()
    assert await server.ended() == 0
    state = await connection.fetchval("SELECT state FROM myhealth.turns WHERE id = $1", turn)
    await connection.close()
    assert (state, session != turn) == ("completed", True)


@pytest.mark.parametrize("seed", range(6))
async def test_a_request_at_the_moment_of_falling_asleep_is_served_or_refused_whole(
    server: Process, seed: int
) -> None:
    """Refused means that no connection was made: what Fly's proxy then tries again on a machine it wakes."""
    server._env["IDLE_SECONDS"] = "0.1"
    await server.start()
    headers = "".join(f"{name}: {value}\r\n" for name, value in server._headers.items())
    request = f"GET /v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode()
    port = int(server._env["PORT"])
    # The token's first check takes longer: it is not what is being raced here.
    served = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            # Beyond the idle time, around the doze: each round begins anew from the last request.
            await asyncio.sleep(0.1 + 0.01 * ((seed * 7 + served * 5) % 40))
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                break
            writer.write(request)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            served += 1
            if served == 12:
                return
    assert await server.ended() == 0


@asynccontextmanager
async def machines_api(server: Process, *, grant: bool, at_once: bool = False) -> AsyncGenerator[list[str]]:
    """Answer on the machine's socket as Fly's API would; a granted suspend freezes the process."""
    asked: list[str] = []

    async def suspend(request: web.Request) -> web.Response:
        asked.append(request.path)
        if not grant:
            return web.json_response({"error": "suspend is not possible"}, status=412)
        if at_once:
            server.process.send_signal(signal.SIGSTOP)
        else:
            asyncio.get_running_loop().call_later(0.05, server.process.send_signal, signal.SIGSTOP)
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_post("/v1/apps/{app}/machines/{id}/suspend", suspend)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, server._env["FLY_API_SOCKET"]).start()
    try:
        yield asked
    finally:
        await runner.cleanup()


async def test_a_suspended_server_wakes_with_living_connections(server: Process, database_url: str) -> None:
    server._env.update(SLEEP="suspend", IDLE_SECONDS=ASKED)
    await server.start()
    async with machines_api(server, grant=True) as asked:
        await server.told("falling_asleep")
        await _frozen(server.process.pid)
        connection = await asyncpg.connect(database_url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agent-backend'"
        )
        await connection.close()
        await asyncio.sleep(FREEZE_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        async with server.client() as http:
            session, turn = await _begin(http, "[[emulator: tokens=3]]")
            async with http.get(f"/v1/sessions/{session}/events") as stream:
                while b"RUN_FINISHED" not in (line := await stream.content.readline()):
                    assert line
        assert turn
        assert asked == ["/v1/apps/myhealth-agents/machines/m1/suspend"]
        await server.told("falling_asleep", 2)
        await _frozen(server.process.pid)
        server.process.send_signal(signal.SIGCONT)
    assert not [line for line in server.log if line["level"] == "error"]


async def test_a_server_that_is_frozen_before_it_has_read_the_answer_wakes_as_well(server: Process) -> None:
    server._env.update(SLEEP="suspend", IDLE_SECONDS="3")
    await server.start()
    async with machines_api(server, grant=True, at_once=True), aiohttp.ClientSession(server.url) as http:
        await server.told("falling_asleep")
        await _frozen(server.process.pid)
        await asyncio.sleep(FREEZE_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        thawed = time.monotonic()
        await server.told("awake")
        # Who woke it waits until then; a freeze before its first look at the clocks is noticed, too.
        assert time.monotonic() - thawed < UNNOTICED_SECONDS / 2
        async with http.get("/readyz") as response:
            assert response.status == 200


async def test_a_turn_sent_between_the_grant_and_the_freeze_is_not_left_half_done(
    server: Process, database_url: str
) -> None:
    server._env.update(SLEEP="suspend", IDLE_SECONDS=ASKED)
    await server.start()
    async with server.client() as http:
        # Its token is known, so that only the suspend can hold it up.
        async with http.get("/v1/agents") as response:
            assert response.status == 200
        async with machines_api(server, grant=True):
            await server.told("falling_asleep")
            asking = asyncio.create_task(_begin(http, "[[emulator: tokens=40 delay_ms=50]]"))
            await _frozen(server.process.pid)
            connection = await asyncpg.connect(database_url)
            running = await connection.fetchval("SELECT count(*) FROM myhealth.turns WHERE state = 'running'")
            await connection.close()
            assert running == 0
            server.process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE):
                await asking


async def test_a_machine_that_cannot_be_suspended_ends_instead(server: Process) -> None:
    server._env["SLEEP"] = "suspend"
    await server.start()
    async with machines_api(server, grant=False) as asked:
        assert await server.ended() == 0
    assert asked


async def test_without_the_machines_api_it_ends_as_well(server: Process) -> None:
    server._env["SLEEP"] = "suspend"
    await server.start()
    assert await server.ended() == 0


async def _frozen(pid: int) -> None:
    """Wait until the process is stopped."""
    async with asyncio.timeout(PATIENCE):
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
