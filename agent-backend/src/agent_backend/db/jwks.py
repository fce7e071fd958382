"""The token issuer's last known keys in Postgres: a boot during its outage checks tokens all the same."""

from __future__ import annotations

import datetime as dt

import asyncpg

from agent_backend.db.pool import Database
from agent_backend.telemetry import Log

MAX_AGE = dt.timedelta(days=7)
"""Older keys are not used: an issuer that was away for so long may have withdrawn any of them."""

_TROUBLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_log = Log("jwks")


class StoredKeys:
    """Remembers the document of one address. It never raises: without it, only such a boot fails."""

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self._url = url

    async def save(self, document: bytes) -> None:
        """Remember what was just fetched."""
        try:
            await self._database.fetchval("SELECT put_jwks($1, $2)", self._url, document)
        except _TROUBLE as error:
            _log.warning("keys_not_saved", error=error)

    async def load(self) -> bytes | None:
        """Return what was fetched last, if that is no longer than MAX_AGE ago."""
        try:
            return await self._database.fetchval("SELECT read_jwks($1, $2)", self._url, MAX_AGE)
        except _TROUBLE as error:
            _log.warning("keys_not_loaded", error=error)
            return None
