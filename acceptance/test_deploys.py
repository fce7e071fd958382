"""Deploys back to back under people who are talking: no turn is dropped, whatever machine it was on."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Generator
from pathlib import Path

import asyncpg
import pytest

from .audit import audit
from .cloud import FLAVOURS, Cloud
from .phone import Phone
from .stack import OwnPostgres, Site, emulator, own_postgres
from .storm import new_database, weather

VERSIONS = int(os.environ.get("DEPLOYS", "20"))
PHONES = 50


@pytest.fixture(scope="module")
def database() -> Generator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_twenty_deploys_under_fifty_phones_drop_no_turn(database: OwnPostgres, tmp_path: Path) -> None:
    rng = random.Random(1)
    with emulator() as model:
        site = Site(await new_database(database, "deploys"), model, tmp_path)
        await asyncio.to_thread(site.command, "migrate")
        cloud = Cloud(site, tmp_path, FLAVOURS["exit"], idle_seconds=30, LEASE_SECONDS="3", POOL_MAX="20")
        reader = await asyncpg.create_pool(site.database_url, min_size=0, max_size=4)
        phones = [
            # A token costs a process; five people with ten phones each are as good as fifty.
            Phone(site, lambda: cloud.url, f"user{n % 5}", random.Random(rng.random()), reader, thinks=0.5)
            for n in range(PHONES)
        ]
        releases: list[set[str]] = []

        async def deploy() -> None:
            for version in range(1, VERSIONS + 1):
                await cloud.deploy(f"v{version}")
                releases.append({each["config"]["env"]["RELEASE"] for each in await cloud.machines()})

        try:
            await asyncio.to_thread(cloud.start)
            await weather(phones, deploy())
            async with reader.acquire() as connection:
                await audit(connection, {turn for phone in phones for turn in phone.accepted})
            await asyncio.gather(*(phone.compare() for phone in phones))
            failed = await reader.fetch(
                "SELECT error_code, attempts, count(*) FROM myhealth.turns "
                "WHERE state = 'failed' GROUP BY 1, 2"
            )
        finally:
            for phone in phones:
                await phone.close()
            reader.terminate()
            await asyncio.to_thread(cloud.end)
    turns = sum(len(phone.accepted) for phone in phones)
    print(f"{VERSIONS} versions, {turns} turns, {sum(phone.reconnects for phone in phones)} reconnects")
    assert releases == [{f"v{version}"} for version in range(1, VERSIONS + 1)]
    assert turns > 2 * PHONES
    assert [tuple(row) for row in failed] == []
