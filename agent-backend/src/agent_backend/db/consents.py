"""Consents in Postgres: given, read, asked for, withdrawn.

`required` is JSON: purpose -> the versions that count.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple
from uuid import UUID

from agent_backend.db.pool import Database

_GIVE = "SELECT give_consent($1, $2, $3, $4, $5, $6)"
_READ = "SELECT * FROM read_consents($1)"
_MISSING = "SELECT missing_consents($1, $2)"
_WITHDRAW = "SELECT withdraw_consent($1, $2, $3)"
_STOPPING = "SELECT stopping_turns($1)"


class ConsentRow(NamedTuple):
    """A user's last word on a purpose; in force unless it was withdrawn, or its version counts no more."""

    purpose: str
    version: str
    text_hash: bytes
    locale: str
    given_at: dt.datetime
    withdrawn_at: dt.datetime | None


async def give(
    database: Database,
    user_id: UUID,
    purpose: str,
    *,
    version: str,
    text_hash: bytes,
    locale: str,
    client: str | None,
) -> None:
    """Note a consent; the same again adds nothing. `text_hash`: SHA-256 of the text, 32 bytes."""
    await database.fetchval(_GIVE, user_id, purpose, version, text_hash, locale, client)


async def read(database: Database, user_id: UUID) -> list[ConsentRow]:
    """Return the user's last word on each purpose they were ever asked for."""
    return [ConsentRow(*row) for row in await database.fetch(_READ, user_id)]


async def missing(database: Database, user_id: UUID, required: str) -> list[str]:
    """Return the purposes that the user has not consented to, in alphabetical order."""
    return await database.fetchval(_MISSING, user_id, required)


async def withdraw(database: Database, user_id: UUID, purpose: str, *, ends_turns: bool) -> list[UUID]:
    """Take a consent back and (`ends_turns`) ask all unfinished turns to stop; return their sessions."""
    return await database.fetchval(_WITHDRAW, user_id, purpose, ends_turns)


async def stopping_turns(database: Database, user_id: UUID) -> bool:
    """Say whether a living machine still runs a turn of the user that was asked to stop."""
    return await database.fetchval(_STOPPING, user_id)
