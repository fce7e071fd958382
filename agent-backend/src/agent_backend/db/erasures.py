"""Erasures, and what does not stay longer than it must, in Postgres: bounded batches, one call each."""

from __future__ import annotations

import datetime as dt
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import msgspec

from agent_backend.db.pool import Database

Account: TypeAlias = Literal["pending", "deleted", "absent", "not_configured"]
"""What became of the user's account with the token issuer; `absent`: it was gone already."""

SESSIONS_PER_STEP = 20
ROWS_PER_STEP = 10_000

_COLUMNS = "receipt, user_key, pending_user, requested_at, erased_at, account, completed_at, counts::text"
_BEGIN = f"SELECT {_COLUMNS} FROM begin_erasure($1, $2)"
_READ = f"SELECT {_COLUMNS} FROM read_erasure($1)"
_TAKE = f"SELECT {_COLUMNS} FROM take_erasures($1)"
_STEP = "SELECT * FROM erase_step($1, $2, $3)"


class Erasure(NamedTuple):
    """An erasure as it stands; `user` is known only until it is complete, `counts` are rows by table."""

    receipt: UUID
    user: UUID | None
    requested_at: dt.datetime
    erased_at: dt.datetime | None
    account: Account
    completed_at: dt.datetime | None
    counts: dict[str, int]


async def begin(database: Database, user_id: UUID, *, account: bool) -> Erasure:
    """Set the tombstone, or find it. From here on every write of this user is refused (AccountErased).

    `account`: the account with the token issuer is to go too.
    """
    row = await database.fetchrow(_BEGIN, user_id, account)
    assert row is not None
    return _erasure(row)


async def step(database: Database, receipt: UUID, *, rows: int = ROWS_PER_STEP) -> tuple[list[UUID], bool]:
    """Delete one batch; return the sessions that went with it, and whether nothing is left."""
    row = await database.fetchrow(_STEP, receipt, SESSIONS_PER_STEP, rows)
    assert row is not None
    return row[0], row[1]


async def account_erased(database: Database, receipt: UUID, account: Account) -> None:
    """Note what became of the account."""
    await database.fetchval("SELECT account_erased($1, $2)", receipt, account)


async def read(database: Database, receipt: UUID) -> Erasure:
    """Return an erasure that exists."""
    row = await database.fetchrow(_READ, receipt)
    assert row is not None
    return _erasure(row)


async def due(database: Database) -> bool:
    """Say whether rows are still to be deleted, or an account is to be asked for now."""
    return await database.fetchval("SELECT erasures_due()")


async def take(database: Database, limit: int = 10) -> list[Erasure]:
    """Return erasures that nobody goes on with; the caller has some seconds before others may take them."""
    return [_erasure(row) for row in await database.fetch(_TAKE, limit)]


def _erasure(row: asyncpg.Record) -> Erasure:
    receipt, _, user, requested_at, erased_at, account, completed_at, counts = row
    decoded = msgspec.json.decode(counts, type=dict[str, int])
    known = msgspec.convert(account, Account)
    return Erasure(receipt, user, requested_at, erased_at, known, completed_at, decoded)


# --- retention --------------------------------------------------------------------------------------


async def collect_versions(database: Database, limit: int) -> int:
    """Delete agent versions with a client's tools that no session refers to; return how many."""
    return await database.fetchval("SELECT collect_versions(NULL, $1)", limit)


async def expire_sessions(database: Database, before: dt.datetime, limit: int) -> int:
    """Delete sessions without activity since then, whole, but none with unfinished turns; return how many."""
    return await database.fetchval("SELECT expire_sessions($1, $2)", before, limit)


class ExpiredSamples(NamedTuple):
    """One user's part: `user` None after the last one, `more` when the same is to be asked again."""

    user: UUID | None
    deleted: int
    more: bool


async def expire_samples(
    database: Database, after: UUID | None, before: dt.datetime, limit: int
) -> ExpiredSamples:
    """Delete samples from before that time of the first user after `after`."""
    row = await database.fetchrow("SELECT * FROM expire_samples($1, $2, $3)", after, before, limit)
    assert row is not None
    return ExpiredSamples(*row)


async def expire_erasures(database: Database, tombstones: dt.datetime, receipts: dt.datetime) -> int:
    """Forget tombstones and receipts of erasures completed before those times; return how many changed."""
    return await database.fetchval("SELECT expire_erasures($1, $2)", tombstones, receipts)
