"""Rows that can be recognised, in every table of users' rows, and the search for what is left of them.

Made from the catalogue: a table that a later migration adds is filled and searched without a word here.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg

# A value of each type; $1 is the canary, $2 a number that differs from row to row.
_VALUES = {
    "uuid": "gen_random_uuid()",
    "text": "$1 || '-' || $2::int",
    "json": "json_build_object('note', $1::text, 'n', $2::int)",
    "jsonb": "jsonb_build_object('note', $1::text, 'n', $2::int)",
    "bytea": "convert_to('{\"note\":\"' || $1 || '\"}', 'UTF8')",
    "smallint": "($2::int % 10 + 1)::smallint",
    "integer": "$2::int",
    "bigint": "$2::int",
    "double precision": "$2::int + 0.5",
    "numeric": "$2::int + 0.25",
    "boolean": "true",
    "timestamp with time zone": "now() - make_interval(mins => $2::int)",
    "date": "current_date - $2::int",
    "integer[]": "ARRAY[$2::int]",
    "text[]": "ARRAY[$1 || '-' || $2::int]",
    "uuid[]": "ARRAY[gen_random_uuid()]",
}


def canary(user: UUID) -> str:
    """Return a text that stands nowhere but in this user's rows."""
    return f"canary-of-{user.hex[:12]}"


async def user_tables(owner: asyncpg.Connection) -> list[str]:
    """Return the tables that hold users' rows."""
    return [row[0] for row in await owner.fetch("SELECT name FROM myhealth.user_tables()")]


async def plant(owner: asyncpg.Connection, user: UUID, rows: int = 3) -> None:
    """Put rows of this user into every table, each column filled, as a superuser; constraints are off."""
    await owner.execute("SET session_replication_role = replica")
    for table in await user_tables(owner):
        checks = await owner.fetch(
            "SELECT conname FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid = ('myhealth.' || $1)::regclass",
            table,
        )
        for check in checks:
            await owner.execute(f'ALTER TABLE myhealth."{table}" DROP CONSTRAINT "{check[0]}"')
        columns = await owner.fetch(
            "SELECT attname AS name, format_type(atttypid, NULL) AS type FROM pg_attribute"
            " WHERE attrelid = ('myhealth.' || $1)::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' AND attidentity = ''",
            table,
        )
        key = await owner.fetch(
            "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)"
            " WHERE indrelid = ('myhealth.' || $1)::regclass AND indisprimary",
            table,
        )
        # A table with one row for each user can hold no more.
        count = 1 if [row[0] for row in key] == ["user_id"] else rows
        names = ", ".join(f'"{column["name"]}"' for column in columns)
        values = ", ".join(
            "$3::uuid" if column["name"] == "user_id" else _VALUES[column["type"]] for column in columns
        )
        for n in range(1, count + 1):
            # One statement for all: the canary also stands in it where a table has no text of its own.
            await owner.execute(
                f'INSERT INTO myhealth."{table}" ({names})'
                f" SELECT {values} FROM (SELECT $1::text, $2::int, $3::uuid) _",
                canary(user),
                n,
                user,
            )
    await owner.execute("SET session_replication_role = origin")


async def traces(owner: asyncpg.Connection, *needles: str) -> dict[str, int]:
    """Return how many rows of each table of the database contain one of these texts in any column.

    Every column counts: rows are searched as text, in which bytes stand in hex.
    """
    sought = [form for needle in needles for form in (needle, needle.encode().hex(), needle.replace("-", ""))]
    found: dict[str, int] = {}
    for row in await owner.fetch(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        " AND n.nspname NOT LIKE 'pg_toast%'"
    ):
        count = await owner.fetchval(
            f'SELECT count(*) FROM "{row[0]}"."{row[1]}" t'
            " WHERE EXISTS (SELECT FROM unnest($1::text[]) s WHERE strpos(t::text, s) > 0)",
            sought,
        )
        if count:
            found[row[1]] = count
    return found


async def rows_of(owner: asyncpg.Connection, user: UUID) -> dict[str, list[dict[str, Any]]]:
    """Return every row of a user, by table, its columns as JSON has them."""
    return {
        table: [
            json.loads(row[0])
            for row in await owner.fetch(
                f'SELECT row_to_json(t)::text FROM myhealth."{table}" t WHERE user_id = $1 ORDER BY t::text',
                user,
            )
        ]
        for table in await user_tables(owner)
    }


def someone() -> UUID:
    """Return a new user."""
    return uuid4()
