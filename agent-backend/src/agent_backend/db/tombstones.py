"""Tombstones of erased users outside the database: they must survive a restore to a time before them.

They hold keyed hashes, no user ids. The key goes with them: a database that was made anew has another.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import msgspec

from agent_backend.db.dsn import connect
from agent_backend.errors import MigrationError


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """One erasure; `user_key` in hex."""

    receipt: UUID
    user_key: str
    requested_at: dt.datetime


class Tombstones(msgspec.Struct, frozen=True, kw_only=True):
    """All of a deployment's, with the key (hex) that their hashes were made with."""

    key: str
    tombstones: list[Tombstone]


async def dump(dsn: str) -> bytes:
    """Return all tombstones as JSON; to be kept apart from the database."""
    connection = await connect(dsn, command_timeout=60)
    try:
        key = await connection.fetchval("SELECT encode(key, 'hex') FROM myhealth.erasure_key")
        rows = await connection.fetch(
            "SELECT receipt, encode(user_key, 'hex') AS user_key, requested_at FROM myhealth.erasures"
            " WHERE user_key IS NOT NULL ORDER BY requested_at"
        )
    finally:
        await connection.close()
    found = Tombstones(key=str(key), tombstones=[Tombstone(**row) for row in rows])
    return msgspec.json.encode(found) + b"\n"


async def load(dsn: str, data: bytes, *, account: bool) -> tuple[int, int]:
    """Put back tombstones that a restored database lacks, and begin to erase whoever has come back.

    Running servers do the rest. `account`: the accounts with the token issuer may have come back too. Returns
    how many tombstones were added, and how many erasures begun. Raises MigrationError when the data is not a
    dump of this deployment.
    """
    try:
        given = msgspec.json.decode(data, type=Tombstones)
    except msgspec.DecodeError as error:
        raise MigrationError(
            f"this is no dump of tombstones: {error}",
            hint="use what `agent-backend tombstones dump` has written",
        ) from error
    connection = await connect(dsn, command_timeout=300)
    try:
        async with connection.transaction():
            key = await connection.fetchval("SELECT encode(key, 'hex') FROM myhealth.erasure_key")
            empty = not await connection.fetchval("SELECT EXISTS (SELECT FROM myhealth.erasures)")
            if key != given.key and not empty:
                raise MigrationError(
                    "these tombstones were made with another key",
                    hint="restore the database they belong to, or load them into one without erasures",
                )
            await connection.execute("UPDATE myhealth.erasure_key SET key = decode($1, 'hex')", given.key)
            added = await connection.fetch(
                "INSERT INTO myhealth.erasures"
                " (receipt, user_key, requested_at, erased_at, completed_at, account)"
                " SELECT receipt, decode(user_key, 'hex'), requested_at, now(), now(), 'absent'"
                " FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) t (receipt, user_key, requested_at)"
                " ON CONFLICT DO NOTHING RETURNING receipt",
                [each.receipt for each in given.tombstones],
                [each.user_key for each in given.tombstones],
                [each.requested_at for each in given.tombstones],
            )
            begun: Any = await connection.fetchval("SELECT myhealth.reopen_erasures($1)", account)
    finally:
        await connection.close()
    return len(added), begun
