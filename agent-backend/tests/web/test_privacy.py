"""Export and erasure over HTTP, on rows in every table of users' rows that there is."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import jsonschema_rs
import pytest

from agent_backend.app import create_app
from agent_backend.db import export
from agent_backend.devtoken import user_id

from ..canaries import canary, plant, rows_of, user_tables
from .serving import headers_for, serving, settings_for

SCHEMA = Path(__file__).resolve().parents[3] / "protocol" / "export.schema.json"

NOBODYS = {
    "agent_versions": "prompts and tools; those that a client declared are exported and collected",
    "deployment": "which deployment this is",
    "erasure_key": "what tombstones are made with",
    "erasures": "keyed hashes; whose they are stands there only while an erasure is under way",
    "health_metrics": "what can be measured",
    "jwks_cache": "public keys",
    "machines": "which servers live",
    "migrations": "which migrations ran",
}
"""Tables that hold no user's rows, and what they hold instead."""


class Served(NamedTuple):
    """A server with its database: requests as a made-up user, and the database's owner."""

    call: Callable[..., Any]
    owner: asyncpg.Connection


@pytest.fixture
async def owner(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def served(tmp_path: Path, database_url: str, owner: asyncpg.Connection) -> AsyncGenerator[Served]:
    settings = settings_for(tmp_path, database_url)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(create_app(settings), settings))
        http = await stack.enter_async_context(aiohttp.ClientSession(url))

        def call(user: str, method: str, path: str, **options: Any) -> Any:
            return http.request(method, path, headers=headers_for(settings, user), **options)

        yield Served(call, owner)


async def archive(served: Served, user: str) -> dict[str, bytes]:
    async with served.call(user, "GET", "/v1/me/export") as response:
        assert (response.status, response.content_type) == (200, "application/zip")
        body = await response.read()
    with zipfile.ZipFile(io.BytesIO(body)) as files:
        assert files.testzip() is None
        return {name: files.read(name) for name in files.namelist()}


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]


# --- the catalogue ----------------------------------------------------------------------------------


async def test_every_table_is_either_a_users_or_known_to_be_nobodys(owner: asyncpg.Connection) -> None:
    tables = {
        row[0] for row in await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'myhealth'")
    }
    assert tables - set(await user_tables(owner)) == set(NOBODYS)


async def test_every_table_of_users_rows_is_under_row_level_security_and_fenced(
    owner: asyncpg.Connection,
) -> None:
    open_tables = await owner.fetch(
        "SELECT u.name FROM myhealth.user_tables() u JOIN pg_class c ON c.oid = ('myhealth.' || u.name)::regclass"
        " WHERE NOT c.relrowsecurity OR NOT has_table_privilege('agent_backend', c.oid, 'SELECT')"
        " OR NOT (u.of_session OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid"
        " AND t.tgname = 'refuse_erased'))"
    )
    assert [row[0] for row in open_tables] == [], "call fence_erased_users() at the end of the migration"


async def test_the_catalogue_knows_what_belongs_to_a_session(owner: asyncpg.Connection) -> None:
    owned = await owner.fetch("SELECT name FROM myhealth.user_tables() WHERE of_session")
    assert {"turns", "messages", "segments", "tool_calls"} <= {row[0] for row in owned}
    names = await user_tables(owner)
    assert names.index("tool_calls") < names.index("turns") < names.index("sessions")


# --- export -----------------------------------------------------------------------------------------


async def test_the_export_holds_every_row_and_column_and_nothing_of_others(served: Served) -> None:
    alice, bob = user_id("alice"), user_id("bob")
    await plant(served.owner, alice)
    await plant(served.owner, bob)
    await served.owner.execute("UPDATE myhealth.health_sources SET name = 'Watch ' || id")
    files = await archive(served, "alice")
    manifest = json.loads(files["manifest.json"])
    counts = {file["name"]: file["rows"] for file in manifest["files"]}
    expected = await rows_of(served.owner, alice)
    assert (manifest["user_id"], set(counts)) == (
        str(alice),
        {f"{table}.jsonl" for table in [*expected, "agent_versions"]},
    )
    for table, rows in expected.items():
        exported = lines(files[f"{table}.jsonl"])
        assert len(exported) == len(rows) == counts[f"{table}.jsonl"] > 0, table
        internal = {**export.INTERNAL["*"], **export.INTERNAL.get(table, {})}
        shaped = export.SHAPED.get(table, export.Shape()).columns
        plain = set(rows[0]) - set(internal) - set(shaped)
        assert plain <= set(exported[0]), table
        assert sorted(_told(row, plain) for row in exported) == sorted(_told(row, plain) for row in rows), (
            table
        )
    whole = b"".join(files.values()).decode()
    assert canary(alice) in whole
    assert canary(bob) not in whole
    assert str(bob) not in whole


def _told(row: dict[str, Any], columns: set[str]) -> str:
    """Return a row as text; bytes are hex with and without Postgres's mark."""
    kept = {column: row[column] for column in columns}
    return json.dumps(kept, sort_keys=True).replace("\\\\x", "")


async def test_what_the_database_keeps_as_numbers_is_exported_in_words(served: Served) -> None:
    await plant(served.owner, user_id("alice"), rows=1)
    await served.owner.execute(
        "UPDATE myhealth.health_sources SET id = DEFAULT, name = 'Watch', device = 'watch'"
    )
    await served.owner.execute("UPDATE myhealth.health_quantities SET metric_id = 7")
    for table in ("health_quantities", "health_sleep", "health_workouts"):
        await served.owner.execute(
            f"UPDATE myhealth.{table} SET source_id = (SELECT id FROM myhealth.health_sources)"
        )
    await served.owner.execute(
        "UPDATE myhealth.health_days SET metric_id = 1, sources = ARRAY(SELECT id FROM myhealth.health_sources)"
    )
    await served.owner.execute(
        "UPDATE myhealth.segments SET epoch = 5, first = 7, last = 8, events = convert_to("
        '\'{"type":"A"}\' || chr(10) || \'{"type":"B"}\', \'UTF8\')'
    )
    files = await archive(served, "alice")
    (quantity,) = lines(files["health_quantities.jsonl"])
    assert (quantity["metric"], quantity["unit"], quantity["source"], quantity["device"]) == (
        *("heart_rate", "bpm", "Watch", "watch"),
    )
    (day,) = lines(files["health_days.jsonl"])
    assert (day["metric"], day["unit"], day["sources"]) == ("steps", "count", ["Watch"])
    events = lines(files["segments.jsonl"])
    assert [(each["cursor"], each["event"]["type"]) for each in events] == [("5-7", "A"), ("5-8", "B")]


async def test_the_export_says_in_two_languages_what_it_is_and_keeps_its_schema(served: Served) -> None:
    await plant(served.owner, user_id("alice"))
    files = await archive(served, "alice")
    assert "GDPR" in files["README.txt"].decode()
    assert "DSGVO" in files["LIESMICH.txt"].decode()
    assert json.loads(files["schema.json"]) == json.loads(SCHEMA.read_text(encoding="utf-8")), (
        "run scripts/export_schema.py"
    )
    schema = json.loads(files["schema.json"])
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(files["manifest.json"]))
    for name, data in files.items():
        if name.endswith(".jsonl"):
            kind = schema["$defs"][name.removesuffix(".jsonl")]
            validator = jsonschema_rs.Draft202012Validator(kind, validate_formats=True)
            for line in lines(data):
                validator.validate(line)


async def test_every_file_of_the_export_is_described(owner: asyncpg.Connection) -> None:
    files = {part.name for part in await export.parts(owner)}
    assert {name for name in files if not export.ABOUT.get(name, {}).get("")} == set(), "db/export_texts.py"
