"""The ledger against an independent bill: machines that are killed while they spend, and a whole system."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from .chaos import Injector, Slot
from .phone import Phone
from .stack import Site, emulator, with_database
from .storm import weather

CALLS = 10_000
USERS = 8
SESSIONS = 24
GLOBAL_CAP = 6_100_000
"""Micro-dollars: a little more than what so many calls come to, so that it is reached."""
USER_CAP = 300_000
"""Of the first two users; the others have none that counts."""
SECONDS = 150.0
SEEDS = [int(seed) for seed in os.environ.get("BUDGET_SEEDS", "1").split(",")]

# What a call counts for: its reservation while it is open, then its charge.
_AMOUNT = "CASE c.state WHEN 'reserved' THEN c.reserved ELSE c.charged END"
_BELOW = (
    "SELECT b.id, b.cost, c.state FROM unnest($1::uuid[], $2::bigint[]) AS b (id, cost) "
    f"LEFT JOIN myhealth.model_calls c ON c.id = b.id WHERE coalesce({_AMOUNT}, 0) < b.cost"
)
_SUMS = (
    f"SELECT c.user_id, sum({_AMOUNT})::bigint AS used, count(*) FROM myhealth.model_calls c "
    "GROUP BY GROUPING SETS ((c.user_id), ())"
)
_ALL = f"SELECT coalesce(sum({_AMOUNT}), 0) FROM myhealth.model_calls c"
_SETTLED = "SELECT count(*) FROM myhealth.model_calls WHERE state = 'settled'"
_COUNTERS = """
    SELECT s.user_id FROM myhealth.spending s
    LEFT JOIN (SELECT c.user_id, c.agent, sum(c.charged) AS spent,
                      sum(c.charged) FILTER (WHERE c.state = 'estimated') AS estimated,
                      sum(c.reserved) FILTER (WHERE c.state = 'reserved') AS reserved
               FROM myhealth.model_calls c GROUP BY GROUPING SETS ((c.user_id, c.agent), (c.user_id))) c
        ON c.user_id = s.user_id AND coalesce(c.agent, '') = s.agent
    WHERE (s.month_spent, s.month_estimated, s.month_reserved)
        IS DISTINCT FROM (coalesce(c.spent, 0), coalesce(c.estimated, 0), coalesce(c.reserved, 0))"""


class Books:
    """Compares the provider's bill with the tables, as often as it is asked to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.bill: dict[UUID, int] = {}
        self.denied: dict[str, int] = {}
        self.observed = 0

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def look(self, connection: asyncpg.Connection) -> int:
        """Check every promise at this moment; return how many calls there are.

        The bill is read before the tables: what is billed by then must be in them.
        """
        self._writer.write(json.dumps({"bill_from": len(self.bill)}).encode() + b"\n")
        told = json.loads(await self._reader.readline())
        fresh = [(UUID(call), cost) for call, cost in told["bill"]]
        self.bill.update(fresh)
        self.denied = told["denied"]
        rows = await connection.fetch(_SUMS)
        below = await connection.fetch(_BELOW, [call for call, _ in fresh], [cost for _, cost in fresh])
        assert below == [], "the ledger is below the bill"
        used = {row["user_id"]: row["used"] for row in rows}
        total = used.pop(None) or 0
        assert total <= GLOBAL_CAP
        assert all(used.get(user, 0) <= USER_CAP for user in _users()[:2])
        assert total >= sum(self.bill.values())
        self.observed += 1
        return next((row["count"] for row in rows if row["user_id"] is None), 0)


def _users() -> list[UUID]:
    return [UUID(int=1 + i) for i in range(USERS)]


def _plan(database: str) -> dict[str, Any]:
    """Return who spends what: sessions of both machines for every user."""
    far = 10**12
    sessions: dict[str, Any] = {}
    for i in range(SESSIONS):
        user = _users()[i % USERS]
        limits = {
            # The month's: a test may run at midnight.
            "user_month": USER_CAP if i % USERS < 2 else far,
            "user_day": far,
            "global_month": GLOBAL_CAP,
            "global_day": far,
        }
        sessions[str(uuid4())] = {
            "user": str(user),
            "turn": str(uuid4()),
            "machine": ("one", "two")[i // USERS % 2],
            "limits": limits,
        }
    return {"database": database, "sessions": sessions}


@asynccontextmanager
async def own_database(site: Site, keys: Path) -> AsyncGenerator[Site]:
    """Yield a migrated site on a database of this test's own."""
    name = f"budgets_{uuid4().hex}"
    admin = await asyncpg.connect(site.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    own = Site(with_database(site.database_url, name), site.emulator_url, keys)
    await asyncio.to_thread(own.command, "migrate")
    try:
        yield own
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


class Fleet:
    """Two machines; each life of one is a process."""

    def __init__(self, plan: dict[str, Any], port: int, rng: random.Random) -> None:
        self._plan = json.dumps(plan)
        self._port = port
        self._rng = rng
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.kills = 0
        self._next = 600

    def start(self, name: str) -> None:
        """Start a machine, or its next life."""
        process = _spender(
            "machine", name, str(self._rng.randrange(1 << 30)), str(self._port), stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(self._plan)
        process.stdin.close()
        self._running[name] = process

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        self.kills += 1

    def end(self) -> None:
        """Kill them all."""
        for name in list(self._running):
            self.kill(name)

    def strike(self, calls: int) -> None:
        """Kill one or both whenever so many calls more have been made that it is time."""
        if calls < self._next:
            return
        self._next = calls + self._rng.randint(600, 1400)
        fallen = self._rng.choice([["one"], ["two"], ["one", "two"]])
        for name in fallen:
            self.kill(name)
        for name in fallen:
            self.start(name)


def _spender(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "acceptance.spender", *arguments]
    return subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, text=True, **options)


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
async def test_ten_thousand_calls_of_machines_that_die_are_never_below_the_bill(
    site: Site, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    provider = _spender("provider", str(seed), stdout=subprocess.PIPE)
    try:
        assert provider.stdout is not None
        port = int(await asyncio.to_thread(provider.stdout.readline))
        async with own_database(site, tmp_path) as own:
            connection = await asyncpg.connect(own.database_url)
            plan = _plan(own.database_url)
            await _sessions(connection, plan)
            fleet = Fleet(plan, port, rng)
            books = Books(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
            try:
                await _spend_it_all(fleet, books, connection)
                fleet.end()
                await _afterwards(fleet, books, connection)
            finally:
                fleet.end()
                books.close()
                await connection.close()
    finally:
        provider.kill()
        provider.wait()
        assert provider.stdout is not None
        provider.stdout.close()


async def _sessions(connection: asyncpg.Connection, plan: dict[str, Any]) -> None:
    await connection.execute("SELECT myhealth.put_agent_version('v', 'coach', '{}')")
    for session, its in plan["sessions"].items():
        await connection.execute(
            "SELECT myhealth.put_session($1, $2, 'coach', 'v', NULL, 'h')", UUID(its["user"]), UUID(session)
        )


async def _spend_it_all(fleet: Fleet, books: Books, connection: asyncpg.Connection) -> None:
    """Let the machines spend and die until the global cap has been met; look at the books all the while."""
    for name in ("one", "two"):
        fleet.start(name)
    async with asyncio.timeout(SECONDS):
        while books.denied.get("global_month", 0) < USERS:
            fleet.strike(await books.look(connection))
            await asyncio.sleep(0.2)


async def _alone(connection: asyncpg.Connection) -> None:
    """Wait until nobody else works in this database: statements of the dead run on, and hold their rows."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(30):
        while await connection.fetchval(others):
            await asyncio.sleep(0.02)


async def _afterwards(fleet: Fleet, books: Books, connection: asyncpg.Connection) -> None:
    """Bury the machines, charge what they left open, and compare call by call."""
    await _alone(connection)
    await connection.execute("DELETE FROM myhealth.machines")
    await books.look(connection)
    assert await connection.fetch(_COUNTERS) == []
    await connection.execute("UPDATE myhealth.sessions SET epoch = epoch + 1, owner = NULL")
    while await connection.fetchval("SELECT myhealth.charge_orphan()") is not None:
        pass
    await connection.execute("SELECT myhealth.tend_global()")
    calls = await books.look(connection)
    assert await connection.fetch(_COUNTERS) == []
    assert await connection.fetchval("SELECT count(*) FROM myhealth.allotments") == 0
    rows = await connection.fetch("SELECT id, state, charged FROM myhealth.model_calls")
    different = {row["state"] for row in rows if row["charged"] != books.bill.get(row["id"], 0)}
    assert different <= {"estimated"}
    spent = sum(row["charged"] for row in rows)
    told = await connection.fetchrow(
        "SELECT drawn, spent FROM myhealth.global_spending WHERE scope = 'month'"
    )
    assert told is not None
    assert tuple(told) == (spent, spent), "the dead have given back what they did not spend"
    estimated = sum(row["state"] == "estimated" for row in rows)
    print(
        f"{calls} calls, {fleet.kills} kills, {estimated} estimated, {books.observed} looks, bill "
        f"{sum(books.bill.values())}, ledger {spent}, cap {GLOBAL_CAP}, denied {books.denied}"
    )
    assert calls >= CALLS
    assert fleet.kills >= 4
    assert estimated > 0
    assert books.denied["user_month"] > 0


# --- the whole system ---------------------------------------------------------------------------------------

PHONES = 8
SETTLED = 100
HARM = 3
"""Kills and freezes of each server."""
_FAULTS = (
    "400",
    "529;retry_after=0",
    "429;retry_after=0",
    "500",
    "disconnect",
    "cut;after=2",
    "reset;after=1",
    "truncated;after=1",
    "overloaded;after=2",
    "malformed;after=2",
    "stall;after=1;seconds=0.4",
)


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
async def test_two_servers_that_die_keep_a_ledger_that_is_never_below_the_models_bill(
    site: Site, tmp_path: Path, seed: int
) -> None:
    """Phones that cancel, a model that fails in every way, kills and freezes; then call by call."""
    with emulator("--keep-requests", "20000") as model:
        async with own_database(Site(site.database_url, model, tmp_path), tmp_path) as own:
            await _storm(own, random.Random(seed))


async def _storm(site: Site, rng: random.Random) -> None:
    slots = [Slot(site, "one"), Slot(site, "two")]
    reader = await asyncpg.create_pool(site.database_url, min_size=1, max_size=4)
    choice = random.Random(rng.random())
    phones = [
        Phone(site, lambda: choice.choice(slots).url, f"user{i}", random.Random(rng.random()), reader)
        for i in range(PHONES)
    ]
    try:
        async with aiohttp.ClientSession(site.emulator_url) as model:
            await asyncio.gather(*(slot.start() for slot in slots))
            bad = asyncio.create_task(_trouble(model, random.Random(rng.random())))
            watch = asyncio.create_task(_never_below(model, reader))
            harm = [Injector(slot, random.Random(rng.random()), site.database_url) for slot in slots]
            await weather(phones, asyncio.gather(_enough(reader), *(each.run(HARM) for each in harm)))
            for task in (bad, watch):
                task.cancel()
            await asyncio.gather(bad, return_exceptions=True)
            looks = await watch
            while await reader.fetchval("SELECT myhealth.charge_orphan()") is not None:
                pass
            await _call_by_call(model, reader, looks)
    finally:
        for phone in phones:
            await phone.close()
        await reader.close()
        for slot in slots:
            if slot.backend is not None:
                await asyncio.to_thread(slot.backend.end)


async def _trouble(model: aiohttp.ClientSession, rng: random.Random) -> None:
    """Let every few calls fail, until cancelled."""
    due = 0
    while True:
        async with model.get("/_emulator/stats") as response:
            asked = (await response.json())["requests"]
        if asked >= due:
            due = asked + rng.randint(2, 5)
            async with model.post("/_emulator/faults", json={"fault": rng.choice(_FAULTS)}) as response:
                assert response.status == 201
        await asyncio.sleep(0.03)


async def _enough(reader: asyncpg.Pool) -> None:
    while (
        await reader.fetchval("SELECT count(*) FROM myhealth.model_calls WHERE state = 'settled'") < SETTLED
    ):
        await asyncio.sleep(0.1)


async def _never_below(model: aiohttp.ClientSession, reader: asyncpg.Pool) -> int:
    """Compare sums until cancelled: the bill first, then the ledger. Return how often."""
    looks = 0
    try:
        while True:
            async with model.get("/_emulator/stats") as response:
                bill = (await response.json())["cost_usd_micro"]
            assert (
                await reader.fetchval(f"SELECT coalesce(sum({_AMOUNT}), 0) FROM myhealth.model_calls c")
                >= bill
            )
            looks += 1
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return looks


async def _call_by_call(model: aiohttp.ClientSession, reader: asyncpg.Pool, looks: int) -> None:
    async with model.get("/_emulator/requests", params={"limit": "20000"}) as response:
        billed = {each["id"]: each for each in (await response.json())["requests"]}
    rows = await reader.fetch("SELECT user_id, request_id, state, charged FROM myhealth.model_calls")
    states = Counter(row["state"] for row in rows)
    assert set(states) <= {"settled", "estimated", "released"}, "nothing stays open"
    users: dict[str, UUID] = {}
    for row in rows:
        if row["state"] == "settled":
            call = billed.pop(row["request_id"])
            assert row["charged"] == math.ceil(round(call["billed_usd_micro"], 3))
            users[call["body"]["metadata"]["user_id"]] = row["user_id"]
    # What is left of the bill has no row that names it: all of it is within its user's estimates.
    left: Counter[UUID] = Counter()
    for call in billed.values():
        if call["billed_usd_micro"]:
            left[users[call["body"]["metadata"]["user_id"]]] += call["billed_usd_micro"]
    estimated: Counter[UUID] = Counter()
    for row in rows:
        if row["state"] == "estimated":
            estimated[row["user_id"]] += row["charged"]
    assert all(estimated[user] >= micros for user, micros in left.items())
    assert await reader.fetch(_COUNTERS) == []
    print(
        f"{dict(states)}, {looks} looks, {sum(left.values())} of the {sum(estimated.values())} "
        "estimated micro-dollars were billed"
    )
    assert states["settled"] >= SETTLED
    assert states["estimated"] > 5
    assert states["released"] > 0
    assert looks > 10
