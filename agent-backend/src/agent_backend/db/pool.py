"""The connection pool: asyncpg, tuned for one function call per operation."""

from __future__ import annotations

import asyncio
import re
import weakref
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import asyncpg

from agent_backend.db import dsn as dsns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Connection: TypeAlias = "asyncpg.Connection | asyncpg.pool.PoolConnectionProxy"

ROLE = "agent_backend"
"""The role the server works as: no BYPASSRLS, owner of nothing."""

SCHEMA = "myhealth"


@cache
def queries(name: str) -> dict[str, str]:
    """Return the named statements of `queries/<name>.sql`; each starts with a line `-- name: <word>`."""
    text = resources.files("agent_backend.db").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\s*$", text, flags=re.MULTILINE)
    return {key: body.strip() for key, body in zip(parts[1::2], parts[2::2], strict=True)}


async def _keep_state(_connection: Connection) -> None:
    """Reset nothing on release: all session state is set per transaction, and a reset is a round trip."""


class Database:
    """Postgres as the rest of the package sees it."""

    def __init__(self, dsn: str, *, min_size: int, max_size: int, lock_timeout_ms: int) -> None:
        self.dsn = dsn
        self._min_size = min_size
        self._max_size = max_size
        self._settings = {
            "role": ROLE,
            "search_path": SCHEMA,
            "application_name": "agent-backend",
            "jit": "off",
            "timezone": "UTC",
            # Statements' arguments are messages and health values: a refused one must not log them, whatever
            # the database's own configuration says. Of its logging settings the only one that is ours to set.
            "log_parameter_max_length_on_error": "0",
            "lock_timeout": str(lock_timeout_ms),
            "statement_timeout": str(lock_timeout_ms * 4),
            "idle_in_transaction_session_timeout": str(lock_timeout_ms),
        }
        # Supabase's pooler takes search_path and application_name from the startup message and drops the
        # rest without a word: neither the role nor a timeout would hold. So a statement says it all again.
        self._again = "; ".join(f"SET {name} = '{value}'" for name, value in self._settings.items())
        self._pool: asyncpg.Pool | None = None
        self._opened: weakref.WeakSet[asyncpg.Connection] = weakref.WeakSet()

    async def open(self) -> None:
        """Connect. Raises OSError or asyncpg.PostgresError when the database does not answer.

        OperatorError: the root certificate that its URL names cannot be read.
        """
        dsns.see_roots(self.dsn)
        self._pool = await asyncpg.create_pool(
            dsns.trusting(self.dsn),
            min_size=self._min_size,
            max_size=self._max_size,
            server_settings=self._settings,
            max_inactive_connection_lifetime=0,
            command_timeout=30,
            reset=_keep_state,
            connect=self._open_one,
        )

    async def _open_one(self, *args: Any, **options: Any) -> asyncpg.Connection:
        connection = await self._insisted(await asyncpg.connect(*args, **options))
        self._opened.add(connection)
        return connection

    async def _insisted(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Set all settings once more, in one round trip; the connection is closed if one is refused."""
        try:
            await connection.execute(self._again)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def renew(self) -> None:
        """Drop every connection of the pool; new ones are made as they are needed.

        For after a freeze: a connection may look alive and be dead at the other end. Statements in flight
        fail as if the connection had broken, which is what is feared.
        """
        for connection in list(self._opened):
            connection.terminate()

    async def connect(self) -> asyncpg.Connection:
        """Open a connection beside the pool (heartbeat, LISTEN); the caller closes it."""
        url = dsns.trusting(self.dsn)
        connection = await asyncpg.connect(url, server_settings=self._settings, command_timeout=10)
        return await self._insisted(connection)

    async def close(self, grace_seconds: float = 5) -> None:
        """Close the pool; connections still busy after the grace are cut."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(grace_seconds):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @property
    def pool(self) -> asyncpg.Pool:
        """The open pool."""
        assert self._pool is not None, "Database.open() comes first"
        return self._pool

    @property
    def in_use(self) -> int:
        """How many connections of the pool are taken; 0 while it is not open."""
        return 0 if self._pool is None else self._pool.get_size() - self._pool.get_idle_size()

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run one autocommitted statement and return its rows."""
        return await self.pool.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """Run one autocommitted statement and return its first row."""
        return await self.pool.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        """Run one autocommitted statement and return the first column of its first row."""
        return await self.pool.fetchval(query, *args)

    @asynccontextmanager
    async def as_user(self, user_id: UUID) -> AsyncGenerator[Connection]:
        """Run a transaction under row level security as this user; for paths that are not hot."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "SELECT set_config('request.jwt.claims', $1, true)", f'{{"sub":"{user_id}"}}'
            )
            yield connection
