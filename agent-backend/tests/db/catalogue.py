"""What the catalogue says about schema myhealth, and what has to be said by hand.

Three lists are kept by hand, each entry with its reason: tables that hold nothing of a user, functions that
take no user, and values for arguments. What is on no list and cannot be told from the catalogue fails a test,
which names it and this file.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from uuid import UUID

from agent_backend.db.pool import ROLE, Connection

WITHOUT_USERS: dict[str, str] = {
    "migrations": "names and checksums of files",
    "deployment": "one row: which environment this database belongs to",
    "machines": "liveness of server processes",
    "agent_versions": "prompts and tools by their hash; device tools as an app declared them",
    "health_metrics": "names and units of what can be measured",
    "jwks_cache": "the issuer's public keys",
    "allotments": "what each server may still spend of the global budgets",
    "global_spending": "what all users together have cost",
    "erasure_key": "the key that tombstones are made with; the server may not read it",
}
"""Table -> why it needs no owner. Anything else must have a user's column and row level security."""

SYSTEM_FUNCTIONS: dict[str, str] = {
    "register_machine": "liveness: a machine's own row",
    "beat": "liveness: a machine's own row; tells the machines",
    "remove_machine": "liveness",
    "claimable_sessions": "the sweep: ids and epochs of sessions without an owner",
    "claim_sessions": "the sweep: takes them, under their lock",
    "taken_sessions": "an owner asks about its own sessions",
    "release_session": "an owner, by incarnation and epoch",
    "start_turn": "an owner, by incarnation and epoch",
    "settle": "an owner, by incarnation and epoch; the user comes from the session's row",
    "append_segments": "an owner, by incarnation and epoch; the user comes from the session's row",
    "park_turn": "an owner, by incarnation and epoch; the user comes from the session's row",
    "requested_cancels": "an owner asks about its own sessions; answers with ids",
    "put_agent_version": "writes what an agent is under its hash",
    "compact_logs": "retention; answers with a number",
    "work_left": "may this machine sleep; answers yes or no",
    "put_jwks": "the issuer's public keys",
    "read_jwks": "the issuer's public keys",
    "reserve": "an owner, by incarnation and epoch; the user comes from the session's row",
    "charge_orphan": "the ledger's sweep; answers with a call's id",
    "expire_calls": "retention; answers with a number",
    "tend_global": "sums over all users",
    "collect_versions": "retention; answers with a number",
    "expire_sessions": "retention; answers with a number",
    "expire_samples": "retention, one user's batch at a time; answers with a number",
    "expire_erasures": "retention; answers with a number",
    "erasures_due": "is an erasure unfinished; answers yes or no",
    "take_erasures": "goes on with erasures: tells the ids of users who are being erased",
    "erase_step": "goes on with an erasure that was asked for",
    "account_erased": "notes what became of an erased user's account",
    "read_erasure": "a receipt, which names nobody; for who erases, by its random id",
}
"""SECURITY DEFINER function without a user -> why the server may call it; it is trusted with these."""

ARGUMENTS: dict[str, Any] = {
    "p_on_busy text": "enqueue",
    "p_status text": "ok",
    "p_max_queue integer": 16,
    "p_limit integer": 100,
    "p_metric text": "steps",
    "p_zone text": "UTC",
    "p_before_id uuid": None,
    "p_through integer": None,
    "p_required json": "{}",
}
"""Name and type of arguments for which the value of their type (`_BY_TYPE`) would not do."""

_BY_TYPE: dict[str, Any] = {
    "text": "x",
    "json": "[]",
    "jsonb": "[]",
    "bytea": b"x",
    "boolean": False,
    "smallint": 1,
    "integer": 0,
    "bigint": 0,
    "real": 0.0,
    "double precision": 0.0,
    "numeric": 0,
    "uuid[]": [],
    "text[]": ["x"],
    "integer[]": [1],
    "double precision[]": [0.0, 86400.0],
    "uuid": UUID(int=0),
}
_USER_COLUMN = re.compile(r"(^|_)(user|account|person|patient|subject|sub)(_id)?$")
_TYPED: dict[str, str] = {
    "date": "DATE '2026-01-02'",
    "interval": "INTERVAL '1 day'",
    "timestamp with time zone": "TIMESTAMPTZ '2026-01-02 03:04:05Z'",
}


class Table(NamedTuple):
    """A table; `user_column` is None where no column looks like a user's id."""

    name: str
    user_column: str | None
    secured: bool
    policies: int


class Function(NamedTuple):
    """A function; `arguments` are the names and types of what goes in."""

    oid: int
    name: str
    signature: str
    definer: bool
    settings: list[str]
    public: bool
    callable: bool
    arguments: list[tuple[str, str]]


class Unknown(AssertionError):
    """Something new that these lists do not know; the text says what to write where."""


async def tables(on: Connection) -> list[Table]:
    """Return every table of the schema."""
    rows = await on.fetch(
        "SELECT c.relname, c.relrowsecurity,"
        " (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) AS policies,"
        " (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a"
        "  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns"
        " FROM pg_class c WHERE c.relnamespace = 'myhealth'::regnamespace AND c.relkind IN ('r', 'p')"
        " ORDER BY c.relname"
    )
    return [
        Table(
            row["relname"],
            next((name for name in row["columns"] if _USER_COLUMN.search(name)), None),
            row["relrowsecurity"],
            row["policies"],
        )
        for row in rows
    ]


async def functions(on: Connection) -> list[Function]:
    """Return every function of the schema."""
    rows = await on.fetch(
        "SELECT p.oid, p.proname, p.oid::regprocedure::text AS signature, p.prosecdef,"
        " coalesce(p.proconfig, '{}') AS settings, has_function_privilege($1, p.oid, 'EXECUTE') AS callable,"
        # No list of grants at all means: everybody.
        " p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = 0) AS public,"
        " p.proargnames, p.proargmodes::text[] AS modes, (SELECT array_agg(format_type(t, NULL) ORDER BY n)"
        "   FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n)) AS types"
        " FROM pg_proc p WHERE p.pronamespace = 'myhealth'::regnamespace ORDER BY p.proname",
        ROLE,
    )
    return [
        Function(
            row["oid"],
            row["proname"],
            row["signature"],
            row["prosecdef"],
            row["settings"],
            row["public"],
            row["callable"],
            _inputs(row["proargnames"], row["modes"], row["types"]),
        )
        for row in rows
    ]


def _inputs(
    names: list[str] | None, modes: list[str] | None, types: list[str] | None
) -> list[tuple[str, str]]:
    if not types:
        return []
    kinds = modes or ["i"] * len(types)
    given = names or [""] * len(kinds)
    return list(
        zip([name for name, kind in zip(given, kinds, strict=True) if kind in "ibv"], types, strict=True)
    )


def call_of(function: Function, known: dict[str, Any], json: str = "[]") -> tuple[str, list[Any]]:
    """Return a statement that calls the function, and its arguments: `known` by name, else by type.

    Raises Unknown when an argument is of a type that is not known.
    """
    places: list[str] = []
    values: list[Any] = []
    for name, kind in function.arguments:
        given = {**ARGUMENTS, **known}
        named = next((each for each in (f"{name} {kind}", name) if each in given), None)
        if named is not None or kind in _BY_TYPE:
            by_type = json if kind in ("json", "jsonb") else _BY_TYPE.get(kind)
            values.append(by_type if named is None else given[named])
            places.append(f"${len(values)}::{kind}")
        elif kind in _TYPED:
            places.append(_TYPED[kind])
        else:
            raise Unknown(
                f"{function.signature}: no value for {name} ({kind}). Add it to ARGUMENTS in {__name__}.py"
            )
    return f"SELECT * FROM myhealth.{function.name}({', '.join(places)}) AS r", values


async def seed(on: Connection, table: Table, user: UUID, *, text: str = "x", **known: Any) -> None:
    """Insert one row of `user`, made from the columns' types: every text and every JSON in it says `text`.

    Constraints and triggers are switched off: a row's content does not matter here, only whose it is. To be
    called as a superuser, in a database that is thrown away.
    """
    assert table.user_column is not None
    values = await _row(on, table.name, {**known, table.user_column: user})
    texts = {"text": text, "json": f'["{text}"]', "jsonb": f'["{text}"]', "bytea": text.encode()}
    for name, (kind, value) in values.items():
        if name not in known:
            values[name] = (kind, texts.get(kind, value))
    await _without_checks(on, table.name)
    await _insert(on, table.name, values)


async def _row(on: Connection, table: str, known: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return column -> (type, value) for the columns that must be given, and those that are known."""
    columns = await on.fetch(
        "SELECT a.attname AS name, format_type(a.atttypid, NULL) AS kind"
        " FROM pg_attribute a WHERE a.attrelid = ('myhealth.' || quote_ident($1))::regclass"
        " AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = '' AND a.attgenerated = ''"
        " AND (a.attname = ANY ($2) OR (a.attnotnull AND NOT a.atthasdef))",
        table,
        list(known),
    )
    row: dict[str, tuple[str, Any]] = {}
    for column in columns:
        name, kind = column["name"], column["kind"]
        if name not in known and kind not in _BY_TYPE and kind not in _TYPED:
            raise Unknown(f"{table}.{name}: no value of type {kind}. Add one to _BY_TYPE in {__name__}.py")
        row[name] = (kind, known.get(name, _BY_TYPE.get(kind)))
    return row


async def _without_checks(on: Connection, table: str) -> None:
    names = await on.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = ('myhealth.' || quote_ident($1))::regclass"
        " AND contype IN ('c', 'f')",
        table,
    )
    for each in names:
        await on.execute(f'ALTER TABLE myhealth.{table} DROP CONSTRAINT "{each["conname"]}"')


async def _insert(on: Connection, table: str, row: dict[str, tuple[str, Any]]) -> None:
    places: list[str] = []
    values: list[Any] = []
    for kind, value in row.values():
        if value is None and kind in _TYPED:
            places.append(_TYPED[kind])
        else:
            values.append(value)
            places.append(f"${len(values)}::{kind}")
    names = ", ".join(f'"{name}"' for name in row)
    statement = f"INSERT INTO myhealth.{table} ({names}) VALUES ({', '.join(places)})"
    await on.execute(statement, *values)


async def insert_as_given(on: Connection, table: Table, user: UUID) -> None:
    """Insert a row that says it is `user`'s, as whoever the connection is now."""
    assert table.user_column is not None
    await _insert(on, table.name, await _row(on, table.name, {table.user_column: user}))
