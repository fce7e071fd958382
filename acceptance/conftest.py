"""One site per test process; two servers on one database for all tests that end none of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from typing import NamedTuple, Protocol
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from .client import Client, consent
from .stack import Backend, Site, emulator, postgres, with_database


class AsUser(Protocol):
    """Returns a client of a server for a made-up user."""

    def __call__(self, backend: Backend, user: str = "alice") -> Client: ...


class Pair(NamedTuple):
    """Two servers on one database."""

    a: Backend
    b: Backend


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    """Yield a migrated deployment with a key and an emulator."""
    name = f"acceptance_{uuid4().hex}"
    with postgres() as url, emulator() as model:
        asyncio.run(_execute(url, f"CREATE DATABASE {name}"))
        made = Site(with_database(url, name), model, tmp_path_factory.mktemp("keys"))
        made.command("migrate")
        made.headers("alice")
        yield made
        if "TEST_DATABASE_URL" in os.environ:
            asyncio.run(_execute(url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def _lasting_pair(site: Site) -> Generator[Pair]:
    # Nobody dies here: on a busy machine a short lease would make one take from the other.
    with (
        site.server("lasting-a", LEASE_SECONDS="20") as a,
        site.server("lasting-b", LEASE_SECONDS="20") as b,
    ):
        asyncio.run(_consent(site, a))
        yield Pair(a, b)


async def _consent(site: Site, backend: Backend) -> None:
    """Let alice agree to everything, for tests whose client is not ours."""
    async with aiohttp.ClientSession(headers=site.headers()) as session:
        await consent(session, backend.url)


@pytest.fixture
def pair(_lasting_pair: Pair) -> Generator[Pair]:
    """Yield two servers that this test must leave alive; whatever they log as an error fails the test."""
    before = [len(backend.errors()) for backend in _lasting_pair]
    yield _lasting_pair
    for backend, count in zip(_lasting_pair, before, strict=True):
        assert backend.errors()[count:] == []


@pytest.fixture
async def http() -> AsyncGenerator[aiohttp.ClientSession]:
    """Yield an HTTP client without a token."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def as_user(site: Site) -> AsyncGenerator[AsUser]:
    """Yield a function that returns a client of a server for a user."""
    open_sessions: list[aiohttp.ClientSession] = []

    def make(backend: Backend, user: str = "alice") -> Client:
        session = aiohttp.ClientSession(headers=site.headers(user), connector=aiohttp.TCPConnector(limit=0))
        open_sessions.append(session)
        return Client(session, backend.url)

    yield make
    for session in open_sessions:
        await session.close()


@pytest.fixture
async def database(site: Site) -> AsyncGenerator[asyncpg.Connection]:
    """Yield a superuser's connection to the site's database."""
    connection = await asyncpg.connect(site.database_url)
    yield connection
    await connection.close()
