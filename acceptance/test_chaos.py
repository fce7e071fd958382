"""Two servers on one database, fifty seeded faults, and clients that check everything they are told."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from .audit import audit
from .chaos import Injector, Slot
from .phone import Phone
from .stack import Site, with_database
from .storm import weather

FAULTS = 50
CLIENTS = 8
SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "1").split(",")]
"""A seed that ever failed is added to the default for good."""


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
async def test_fifty_faults_lose_double_and_stick_nothing(site: Site, tmp_path: Path, seed: int) -> None:
    name = f"chaos_{uuid4().hex}"
    admin = await asyncpg.connect(site.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    own = Site(with_database(site.database_url, name), site.emulator_url, tmp_path)
    await asyncio.to_thread(own.command, "migrate")
    try:
        await _run(own, seed)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def _anywhere(slots: list[Slot], rng: random.Random) -> Callable[[], str | None]:
    """Return a function that chooses among the servers that are up."""
    own = random.Random(rng.random())
    return lambda: own.choice(slots).url


async def _enough(clients: list[Phone]) -> None:
    """Wait until so much was said that it shows something: on a busy machine, faults may be over before."""
    async with asyncio.timeout(120):
        while sum(len(each.accepted) for each in clients) <= FAULTS or not any(c.answered for c in clients):
            await asyncio.sleep(0.05)


async def _run(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    slots = [Slot(site, "one"), Slot(site, "two")]
    reader = await asyncpg.create_pool(site.database_url, min_size=1, max_size=4)
    clients = [
        Phone(site, _anywhere(slots, rng), f"user{i}", random.Random(rng.random()), reader)
        for i in range(CLIENTS)
    ]
    try:
        await asyncio.gather(*(slot.start() for slot in slots))
        injectors = [Injector(slot, random.Random(rng.random()), site.database_url) for slot in slots]
        harm = (each.run(FAULTS // len(slots)) for each in injectors)
        await weather(clients, asyncio.gather(_enough(clients), *harm))
        faults = sum((injector.done for injector in injectors), Counter[str]())
        async with reader.acquire() as connection:
            await audit(connection, {turn for client in clients for turn in client.accepted})
        await asyncio.gather(*(client.compare() for client in clients))
    except BaseException:
        for slot in slots:
            print(slot.name, *slot.errors(), sep="\n")
        raise
    finally:
        for client in clients:
            await client.close()
        await reader.close()
        for slot in slots:
            if slot.backend is not None:
                await asyncio.to_thread(slot.backend.end)
    turns = sum(len(client.accepted) for client in clients)
    waits = sum(len(client.talk.waited_for) for client in clients)
    answers = sum(len(client.answered) for client in clients)
    print(f"seed {seed}: {dict(faults)}, {turns} turns, {sum(c.reconnects for c in clients)} reconnects")
    print(f"{waits} calls waited for a device, {answers} were answered in time")
    assert faults.total() == FAULTS
    assert turns > FAULTS
    assert answers > 0
