"""While others attack the server, a user's stream goes on, memory is bounded, and afterwards it sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from itertools import pairwise

import psutil
import pytest

from .attack import EVERYTHING, Target, half_heads, under
from .client import PATIENCE, Client, say
from .conftest import AsUser
from .stack import Backend, Site

TOKENS = 60
DELAY_MS = 10
ADDED_SECONDS = 0.4
"""What the p95 of the gaps between two events may grow by: attackers and server share two cores."""
TRIES = 4
"""Turns in which it may be more: with others, too, whom this test knows nothing of."""
MEGABYTES = 60


@pytest.fixture
def server(site: Site) -> Generator[Backend]:
    """Yield a server with limits as in production, that sleeps when it is idle."""
    # Making a token takes a process of its own; once the server is up, nobody waits as long as it is patient.
    for user in ("alice", "mallory"):
        site.headers(user)
    env = {"LIMIT_FACTOR": "1", "MAX_CONNECTIONS": "200", "SLEEP": "exit", "IDLE_SECONDS": "2.5"}
    with site.server("limited", LEASE_SECONDS="20", **env) as backend:
        yield backend


async def gaps(client: Client) -> list[float]:
    """Take one turn as a stream to its end; return the seconds between its events, in order of length."""
    session = await client.new_session()
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    last = ""
    async for received in client.answer(session, say(tokens=TOKENS, delay_ms=DELAY_MS)):
        times.append(clock())
        last = received.type
    assert last == "RUN_FINISHED"
    return sorted(later - earlier for earlier, later in pairwise(times))


def p95(of: list[float]) -> float:
    return of[int(len(of) * 0.95)]


async def test_under_attack_a_user_is_served_and_afterwards_the_server_sleeps(
    site: Site, server: Backend, as_user: AsUser
) -> None:
    process = psutil.Process(server.pid)
    client = as_user(server)
    target = Target(server.url, site.headers("mallory"))
    async with asyncio.timeout(TRIES * PATIENCE):
        calm = await gaps(client)
        before = process.memory_info().rss
        async with under(target, EVERYTHING):
            added = [p95(await gaps(client)) - p95(calm)]
            while added[-1] >= ADDED_SECONDS and len(added) < TRIES:
                added.append(p95(await gaps(client)) - p95(calm))
            status, _ = await client.call("GET", "/readyz")
            assert status == 200
        grown = (process.memory_info().rss - before) / 1e6
        assert min(added) < ADDED_SECONDS
        assert grown < MEGABYTES
        async with under(target, {half_heads: 5}):
            while not any(line["action"] == "falling_asleep" for line in server.log):
                await asyncio.sleep(0.05)
    assert server.errors() == []
