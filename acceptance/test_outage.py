"""Postgres goes away under real servers: turns stream on, nothing is lost, readiness tells the truth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Literal

import aiohttp
import asyncpg
import psutil
import pytest

from .client import Client, Received, Until, ended, take
from .stack import Backend, OwnPostgres, Site, emulator, own_postgres

OUTAGE_SECONDS = 6.0
"""Longer than the lease of these servers, so that nobody may take that for a death."""


@pytest.fixture(scope="module")
def database() -> Generator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_site(database: OwnPostgres, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    with emulator() as model:
        site = Site(database.url, model, tmp_path_factory.mktemp("keys"))
        site.command("migrate")
        site.headers()
        yield site


async def _ready(http: aiohttp.ClientSession, backend: Backend) -> tuple[int, str]:
    async with http.get(backend.url + "/readyz") as response:
        return response.status, await response.text()


async def _until(http: aiohttp.ClientSession, backend: Backend, status: int) -> str:
    async with asyncio.timeout(15):
        while (answer := await _ready(http, backend))[0] != status:
            await asyncio.sleep(0.02)
    return answer[1]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_live_turns_stream_through_an_outage_and_are_written_when_it_is_over(
    own_site: Site, database: OwnPostgres, mode: Literal["fast", "immediate"]
) -> None:
    with own_site.server(f"outage-{mode}", LEASE_SECONDS="3") as backend:
        async with aiohttp.ClientSession(headers=own_site.headers()) as http:
            client = Client(http, backend.url)
            session = await client.new_session()
            turn = await client.begin(session, "[[emulator: tokens=160 delay_ms=50]]")
            seen: list[Received] = []
            reading = asyncio.create_task(_collect(client, session, turn["cursor"], seen))
            await _until_count(seen, 10)
            await asyncio.to_thread(database.stop, mode)
            process = psutil.Process(backend.pid)
            cpu, began, at_stop = sum(process.cpu_times()[:2]), time.monotonic(), len(seen)
            assert "database" in await _until(http, backend, 503)
            status, problem = await client.put_turn(session, "during the outage")
            assert (status, problem["code"]) == (503, "unavailable")
            await asyncio.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - began)))
            during = len(seen) - at_stop
            busy = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
            await asyncio.to_thread(database.start)
            await _until(http, backend, 200)
            async with asyncio.timeout(40):
                await reading
            log = await client.log(session)
            state = (await client.turn(session, turn["id"]))["state"]
    assert during > OUTAGE_SECONDS / 0.05 / 2, "deltas went on"
    assert busy < 0.5, "no busy loop"
    assert state == "completed"
    assert [each.data for each in seen] == [each.data for each in log][-len(seen) :]
    assert not [line for line in backend.errors() if line["action"] != "library_log"]


async def _collect(client: Client, session: str, after: str, seen: list[Received]) -> None:
    """Follow over however many connections it takes."""
    cursor = after
    while not ended(seen[-1:]):
        try:
            async for received in client.sse(session, cursor):
                seen.append(received)
                cursor = received.cursor or cursor
                if ended([received]):
                    return
        except (aiohttp.ClientError, AssertionError):
            await asyncio.sleep(0.05)


async def _until_count(seen: list[Received], count: int) -> None:
    async with asyncio.timeout(15):
        while len(seen) < count:
            await asyncio.sleep(0.01)


async def test_a_database_at_its_limit_of_connections_is_said_and_waited_for(own_site: Site) -> None:
    with own_site.server("full", LEASE_SECONDS="3", POOL_MIN="1", POOL_MAX="4") as backend:
        async with aiohttp.ClientSession(headers=own_site.headers()) as http:
            client = Client(http, backend.url)
            session = await client.new_session()
            hog: list[asyncpg.Connection] = []
            try:
                with suppress(asyncpg.TooManyConnectionsError):
                    while True:
                        hog.append(await asyncpg.connect(own_site.database_url))
                statuses = await asyncio.gather(
                    *(client.put_turn(session, "[[emulator: tokens=2]]") for _ in range(12))
                )
                # 200: taken, and then found again when the rest of the request had to be repeated.
                assert {status for status, _ in statuses} <= {200, 202, 503}
            finally:
                for connection in hog:
                    await connection.close()
            turn = await client.begin(session, "[[emulator: tokens=2]]")
            await take(client.sse(session, turn["cursor"]), _ends(turn["id"]))
            # It was sent last: all that was taken before has ended by then.
            for body in (body for status, body in statuses if status != 503):
                assert (await client.turn(session, body["id"]))["state"] == "completed"


def _ends(turn: str) -> Until:
    def check(events: list[Received]) -> bool:
        started = next((i for i, each in enumerate(events) if each.event.get("runId") == turn), None)
        return started is not None and any(ended([each]) for each in events[started + 1 :])

    return check


async def test_a_server_that_starts_during_an_outage_waits_for_its_end(
    own_site: Site, database: OwnPostgres
) -> None:
    await asyncio.to_thread(database.stop, "fast")
    backend = Backend(own_site.environment(MACHINE_ID="early"))
    try:
        # It listens before it connects; who asks now is answered when it is ready.
        async with aiohttp.ClientSession() as http, asyncio.timeout(20):
            while not await _listens(backend):
                await asyncio.sleep(0.01)
            asking = asyncio.create_task(_ready(http, backend))
            await asyncio.to_thread(database.start)
            assert (await asking)[0] == 200
    finally:
        await asyncio.to_thread(database.start)
        await asyncio.to_thread(backend.end)


async def _listens(backend: Backend) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(backend.url.rpartition(":")[2]))
    except OSError:
        return False
    writer.close()
    return True
