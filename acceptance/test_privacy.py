"""Erasure and export of the whole system: beside turns, imports and exports, on two servers, after kills."""

from __future__ import annotations

import asyncio
import io
import json
import random
import zipfile
from contextlib import suppress
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import psutil
import pytest

from .client import Client
from .conftest import AsUser, Pair
from .stack import Backend, Site

SEEDS = (1, 2, 3)
LARGE = 40_000
"""With 200,000 the server takes as little: docs/design/privacy.md."""
LONG = "[[emulator: tokens=600 delay_ms=10]]"
TOOL = {
    "name": "read_diary",
    "description": "Reads the diary.",
    "input_schema": {"type": "object", "properties": {}},
}


async def _traces(database: asyncpg.Connection, needle: str) -> dict[str, int]:
    """Return how many rows of each table contain a text in any column (bytes are searched in hex)."""
    found: dict[str, int] = {}
    sought = [needle, needle.encode().hex(), needle.replace("-", "")]
    for row in await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'myhealth'"):
        count = await database.fetchval(
            f'SELECT count(*) FROM myhealth."{row[0]}" t'
            " WHERE EXISTS (SELECT FROM unnest($1::text[]) s WHERE strpos(t::text, s) > 0)",
            sought,
        )
        if count:
            found[row[0]] = count
    return found


async def _user_of(client: Client, database: asyncpg.Connection) -> UUID:
    """Return a client's user id, from a session of its own."""
    session = await client.new_session()
    found: UUID | None = await database.fetchval(
        "SELECT user_id FROM myhealth.sessions WHERE id = $1", UUID(session)
    )
    assert found is not None
    return found


def _sample(n: int) -> dict[str, object]:
    at = f"2026-01-{n // 1440 % 28 + 1:02}T{n // 60 % 24:02}:{n % 60:02}:00Z"
    return {
        "kind": "quantity",
        "id": str(uuid4()),
        "metric": "heart_rate",
        "value": 60 + n % 40,
        "unit": "bpm",
        "start": at,
        "end": at,
        "source": "Watch of the erased",
        "device": "watch",
    }


# --- everything at once -----------------------------------------------------------------------------


async def _until_refused(client: Client, method: str, path: str, body: object) -> int:
    """Send until the account is refused; return how often it was taken."""
    taken = 0
    while True:
        status, answer = await client.call(method, path, json=body)
        if status == 410:
            assert answer["code"] == "account_erased"
            return taken
        assert status in (200, 201, 503), answer
        taken += status != 503


async def _import(client: Client, random_: random.Random) -> None:
    n = 0
    while True:
        batch = [_sample(n + i) for i in range(random_.randint(1, 200))]
        n += len(batch)
        status, answer = await client.call("PUT", "/v1/health/samples", json={"samples": batch})
        if status == 410:
            return
        if status == 403:
            # Who is erased has given no consent any more; a server remembers it for a second.
            assert (answer["code"], await _refused_for_good(client)) == ("consent_required", True)
            return
        assert status in (200, 503), answer


async def _refused_for_good(client: Client) -> bool:
    while (status := (await client.call("PUT", "/v1/me/profile", json={}))[0]) == 503:
        pass
    return status == 410


async def _converse(client: Client, random_: random.Random) -> None:
    """Make sessions and send messages until the account is refused; follow what is streamed."""
    while True:
        session = str(uuid4())
        status, answer = await client.call(
            "PUT", f"/v1/sessions/{session}", json={"device_tools": [TOOL]} if random_.random() < 0.5 else {}
        )
        if status == 410:
            return
        assert status in (200, 201, 503), answer
        with suppress(AssertionError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(random_.uniform(0.05, 1)):
                async for _ in client.answer(session, LONG):
                    pass


async def _export(client: Client) -> None:
    """Export again and again until nothing is left; each archive is whole."""
    rows = 1
    while rows:
        async with client.raw("GET", "/v1/me/export") as response:
            if response.status == 429:
                await asyncio.sleep(0.02)
                continue
            assert response.status == 200
            body = await response.read()
        with zipfile.ZipFile(io.BytesIO(body)) as files:
            assert files.testzip() is None
            rows = sum(each["rows"] for each in json.loads(files.read("manifest.json"))["files"])


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_erasure_beside_everything_else_leaves_nothing(
    pair: Pair, as_user: AsUser, database: asyncpg.Connection, seed: int
) -> None:
    random_ = random.Random(seed)
    name = f"erased-{seed}-{uuid4().hex[:6]}"
    a, b = as_user(pair.a, name), as_user(pair.b, name)
    neighbour = as_user(pair.a, f"neighbour-{name}")
    spared = await _user_of(neighbour, database)
    user = await _user_of(a, database)
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        for client in (a, b):
            group.create_task(_import(client, random.Random(random_.random())))
            for _ in range(2):
                group.create_task(_converse(client, random.Random(random_.random())))
        group.create_task(_until_refused(a, "PUT", "/v1/me/profile", {"time_zone": "Asia/Tokyo"}))
        await asyncio.sleep(random_.uniform(0.1, 0.8))
        group.create_task(_export(b))
        await asyncio.sleep(random_.uniform(0, 0.3))
        receipt = await _erase(random_.choice((a, b)))
    assert receipt["rows"]["sessions"] >= 1
    # Their runs have ended on both servers; what they were about to write is refused by now. A connection
    # whose reader was cancelled between Parse and Execute is "active", in ClientRead, until it is used again.
    async with asyncio.timeout(20):
        while await database.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
            " AND application_name = 'agent-backend' AND wait_event IS DISTINCT FROM 'ClientRead')"
        ):
            await asyncio.sleep(0.02)
    assert await _traces(database, str(user)) == {}
    assert await _traces(database, "Watch of the erased") == {}
    assert await _traces(database, "read_diary") == {}
    assert set(await _traces(database, str(spared))) == {"sessions", "consents"}


async def _erase(client: Client) -> dict[str, dict[str, int]]:
    while True:
        status, receipt = await client.call("DELETE", "/v1/me")
        if status == 200:
            return receipt
        assert status in (202, 503), receipt
        await asyncio.sleep(0.05)


# --- large users ------------------------------------------------------------------------------------

_FILL = """
INSERT INTO myhealth.health_quantities (user_id, id, start_at, end_at, value, source_id, metric_id)
SELECT $1, gen_random_uuid(), t, t, 60 + random() * 40, 1, 7
FROM generate_series(now() - make_interval(mins => $2::int - 1), now(), interval '1 minute') t
"""
_HOLD_LAST = """
SELECT FROM myhealth.health_quantities WHERE user_id = $1 ORDER BY start_at DESC LIMIT 1 FOR UPDATE
"""
SAMPLES = 40_000


@pytest.mark.parametrize("again", ["asked again", "left to the other server"])
async def test_a_kill_in_the_middle_of_a_large_erasure_is_made_good(
    site: Site, as_user: AsUser, database: asyncpg.Connection, again: str
) -> None:
    name = f"large-{uuid4().hex[:6]}"
    with site.server("dies") as dying, site.server("lives") as living:
        client = as_user(dying, name)
        user = await _user_of(client, database)
        await database.execute(_FILL, user, SAMPLES)
        # The last row is held, so that the erasure cannot end before the kill.
        held = database.transaction()
        await held.start()
        await database.execute(_HOLD_LAST, user)
        asking = asyncio.create_task(client.call("DELETE", "/v1/me"))
        async with asyncio.timeout(20):
            while not 0 < await _left(database, user) < SAMPLES:
                await asyncio.sleep(0.001)
        dying.kill()
        await asyncio.gather(asking, return_exceptions=True)
        await held.rollback()
        assert await _left(database, user) > 0
        other = as_user(living, name)
        if again == "asked again":
            await _erase(other)
        else:
            # The dead server's time is over; otherwise this test would wait for it.
            await database.execute("UPDATE myhealth.erasures SET next_at = now()")
            async with asyncio.timeout(20):
                while await _traces(database, str(user)):
                    await asyncio.sleep(0.1)
        assert await _traces(database, str(user)) == {}
        assert (await _erase(other))["rows"]["health_quantities"] == SAMPLES


async def _left(database: asyncpg.Connection, user: UUID) -> int:
    count: int | None = await database.fetchval(
        "SELECT count(*) FROM myhealth.health_quantities WHERE user_id = $1", user
    )
    return count or 0


async def test_the_export_of_a_large_user_takes_no_memory_to_speak_of(
    pair: Pair, as_user: AsUser, database: asyncpg.Connection
) -> None:
    client = as_user(pair.a, f"reader-{uuid4().hex[:6]}")
    user = await _user_of(client, database)
    await _export_once(client, pair.a)  # what is imported for the first one is not counted
    await database.execute(_FILL, user, LARGE)
    before = psutil.Process(pair.a.pid).memory_info().rss
    rows, peak = await _export_once(client, pair.a)
    assert rows == LARGE
    assert peak - before < 20 * 1024**2
    print(f"an export of {rows} samples: {(peak - before) / 1024**2:.1f} MiB more memory")
    await _erase(client)


async def _export_once(client: Client, backend: Backend) -> tuple[int, int]:
    """Return how many samples came, and the server's largest memory while they did (bytes)."""
    process, archive, peak = psutil.Process(backend.pid), io.BytesIO(), 0
    async with client.raw("GET", "/v1/me/export") as response:
        assert response.status == 200
        async for chunk in response.content.iter_any():
            archive.write(chunk)
            peak = max(peak, process.memory_info().rss)
    with zipfile.ZipFile(archive) as files:
        return sum(1 for _ in files.open("health_quantities.jsonl")), peak
