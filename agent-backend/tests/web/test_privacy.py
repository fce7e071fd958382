"""Export and erasure over HTTP, on rows in every table of users' rows that there is."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import aiohttp
import asyncpg
import jsonschema_rs
import pytest
from aiohttp import web

from agent_backend.app import create_app
from agent_backend.db import export
from agent_backend.db.export_texts import ABOUT
from agent_backend.devtoken import user_id
from agent_backend.telemetry import metrics
from agent_backend.web import privacy
from agent_backend.web.openapi import document

from ..canaries import canary, plant, rows_of, traces, user_tables
from ..health_data import quantity
from .serving import headers_for, serving, settings_for

KEY = "sb_secret_for-tests"
DATA_MAP = Path(__file__).resolve().parents[3] / "docs" / "runbooks" / "privacy.md"
SCHEMA = Path(__file__).resolve().parents[3] / "protocol" / "export.schema.json"

NOBODYS = {
    "agent_versions": "prompts and tools; those that a client declared are exported and collected",
    "allotments": "what each server may spend",
    "deployment": "which deployment this is",
    "erasure_key": "what tombstones are made with",
    "erasures": "keyed hashes; whose they are stands there only while an erasure is under way",
    "global_spending": "what all users together have cost",
    "health_metrics": "what can be measured",
    "jwks_cache": "public keys",
    "machines": "which servers live",
    "migrations": "which migrations ran",
}
"""Tables that hold no user's rows, and what they hold instead."""


class Issuer(NamedTuple):
    """A stand-in for the token issuer's Auth admin API: what it was asked, and what it answers."""

    asked: list[tuple[str, str | None, str | None]]
    answers: list[int]
    """Statuses of the next answers; the last one stays. Below zero: a gateway's, for a wrong address."""


class Served(NamedTuple):
    """A server with its database: requests as a made-up user, the database's owner, the token issuer."""

    call: Callable[..., Any]
    owner: asyncpg.Connection
    issuer: Issuer


@pytest.fixture
async def owner(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def issuing() -> AsyncGenerator[tuple[str, Issuer]]:
    issuer = Issuer([], [200, 404])

    async def delete(request: web.Request) -> web.Response:
        issuer.asked.append(
            (request.path, request.headers.get("apikey"), request.headers.get("Authorization"))
        )
        status = issuer.answers.pop(0) if len(issuer.answers) > 1 else issuer.answers[0]
        text = {404: {"error_code": "user_not_found"}, -404: {"message": "no Route matched"}}.get(status, {})
        return web.json_response(text, status=abs(status))

    app = web.Application()
    app.router.add_delete("/auth/v1/admin/users/{user}", delete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", issuer
    finally:
        await runner.cleanup()


@asynccontextmanager
async def served_with(
    folder: Path, database_url: str, owner: asyncpg.Connection, **env: str
) -> AsyncGenerator[Served]:
    async with AsyncExitStack() as stack:
        supabase, issuer = await stack.enter_async_context(issuing())
        # Tokens are the development key's all the same; only the accounts are the issuer's.
        issued = settings_for(folder)
        settings = settings_for(
            folder,
            database_url,
            SUPABASE_URL=supabase,
            JWKS_URL=issued.jwks_url,
            AUTH_ISSUER=issued.auth_issuer,
            **env,
        )
        url = await stack.enter_async_context(serving(create_app(settings), settings))
        http = await stack.enter_async_context(aiohttp.ClientSession(url))

        def call(user: str, method: str, path: str, **options: Any) -> Any:
            return http.request(method, path, headers=headers_for(settings, user), **options)

        yield Served(call, owner, issuer)


@pytest.fixture
async def served(tmp_path: Path, database_url: str, owner: asyncpg.Connection) -> AsyncGenerator[Served]:
    async with served_with(tmp_path, database_url, owner, SUPABASE_SERVICE_KEY=KEY) as made:
        yield made


async def asked(served: Served, user: str, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with served.call(user, method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


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
    assert tables - set(await user_tables(owner)) <= set(NOBODYS)
    mapped = set(re.findall(r"^\| `(\w+)` \|", DATA_MAP.read_text(encoding="utf-8"), re.MULTILINE))
    assert tables - mapped == set(), "tell it in the data map of docs/runbooks/privacy.md"


async def test_every_table_of_users_rows_is_under_row_level_security_and_fenced(
    owner: asyncpg.Connection,
) -> None:
    open_tables = await owner.fetch(
        "SELECT u.name FROM myhealth.user_tables() u"
        " JOIN pg_class c ON c.oid = ('myhealth.' || u.name)::regclass"
        " WHERE NOT c.relrowsecurity OR NOT has_table_privilege('agent_backend', c.oid, 'SELECT')"
        # The ledger's are written under the session's lock as well.
        " OR NOT (u.of_session OR u.name IN ('model_calls', 'spending') OR EXISTS (SELECT FROM pg_trigger t"
        " WHERE t.tgrelid = c.oid AND t.tgname = 'refuse_erased'))"
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
    sources = "(SELECT id FROM myhealth.health_sources)"
    for change in (
        "health_sources SET name = 'Watch', device = 'watch'",
        f"health_quantities SET metric_id = 7, source_id = {sources}",
        f"health_sleep SET source_id = {sources}",
        f"health_workouts SET source_id = {sources}",
        f"health_days SET metric_id = 1, sources = ARRAY{sources}",
    ):
        await served.owner.execute(f"UPDATE myhealth.{change}")
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
    assert {name for name in files if not ABOUT.get(name, {}).get("")} == set(), "db/export_texts.py"


async def _reading(owner: asyncpg.Connection) -> int:
    return await owner.fetchval(  # pyright: ignore[reportReturnType] - a count is never null
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
    )


async def test_exports_are_bounded_and_end_with_their_reader(served: Served) -> None:
    async with served.owner.transaction():
        # No export comes further than this table.
        await served.owner.execute("LOCK TABLE myhealth.messages IN ACCESS EXCLUSIVE MODE")
        async with served.call("alice", "GET", "/v1/me/export") as first:
            assert first.status == 200
            assert (await asked(served, "alice", "GET", "/v1/me/export"))[0] == 429
            async with served.call("bob", "GET", "/v1/me/export") as second:
                assert second.status == 200
                status, problem = await asked(served, "carol", "GET", "/v1/me/export")
                assert (status, problem["limit"]) == (429, "exports")
                async with asyncio.timeout(4):
                    while await _reading(served.owner) < 2:
                        await asyncio.sleep(0.01)
                first.close()
                second.close()
        # The lock is still there: only their readers' going has ended the queries.
        async with asyncio.timeout(4):
            while await _reading(served.owner):
                await asyncio.sleep(0.01)
    assert set(await archive(served, "alice")) >= {"manifest.json"}


async def test_one_export_of_a_user_is_read_at_a_time_whichever_server_is_asked(served: Served) -> None:
    async with served.owner.transaction():
        assert await served.owner.fetchval("SELECT myhealth.begin_export($1)", user_id("alice"))
        status, problem = await asked(served, "alice", "GET", "/v1/me/export")
        assert (status, problem["limit"]) == (429, "exports")
        assert (await asked(served, "bob", "HEAD", "/v1/me/export"))[0] == 200
    assert set(await archive(served, "alice")) >= {"manifest.json"}


# --- erasure ----------------------------------------------------------------------------------------


async def test_after_an_erasure_nothing_is_left_and_the_neighbour_has_everything(served: Served) -> None:
    alice, bob = user_id("alice"), user_id("bob")
    await plant(served.owner, alice)
    await plant(served.owner, bob)
    before = await rows_of(served.owner, bob)
    assert set(await traces(served.owner, str(alice), canary(alice))) == set(before), "the search finds"
    status, receipt = await asked(served, "alice", "DELETE", "/v1/me")
    assert (status, receipt["status"], receipt["account"]) == (200, "erased", "deleted")
    assert receipt["rows"] == {table: len(rows) for table, rows in before.items()}
    assert await traces(served.owner, str(alice), canary(alice)) == {}
    assert await rows_of(served.owner, bob) == before
    assert served.issuer.asked == [(f"/auth/v1/admin/users/{alice}", KEY, f"Bearer {KEY}")]
    assert str(alice) not in json.dumps(receipt)
    assert await asked(served, "alice", "DELETE", "/v1/me") == (200, receipt)
    assert len(served.issuer.asked) == 1


async def test_an_erased_user_is_refused_and_others_are_not(served: Served) -> None:
    assert (await asked(served, "alice", "DELETE", "/v1/me"))[0] == 200
    sample = quantity("steps", "2026-01-05T10:00", "2026-01-05T10:05", 10)
    [text] = [
        each
        for each in (await asked(served, "bob", "GET", "/v1/consents"))[1]["consents"]
        if (each["purpose"], each["locale"]) == ("health_data_processing", "en")
    ]
    consent = {"version": text["version"], "text_hash": text["sha256"], "locale": "en"}
    writes: list[tuple[str, str, Any]] = [
        ("PUT", "/v1/me/profile", {"time_zone": "Europe/Berlin"}),
        ("PUT", f"/v1/sessions/{uuid4()}", {}),
        ("PUT", f"/v1/me/consents/{text['purpose']}", consent),
    ]
    for method, path, body in writes:
        status, problem = await asked(served, "alice", method, path, json=body)
        assert (status, problem["code"]) == (410, "account_erased"), path
        assert (await asked(served, "bob", method, path, json=body))[0] in (200, 201)
    upload: dict[str, Any] = {"samples": [sample]}
    status, problem = await asked(served, "alice", "PUT", "/v1/health/samples", json=upload)
    assert (status, problem["code"]) == (403, "consent_required"), "which an erased user cannot give"
    assert (await asked(served, "bob", "PUT", "/v1/health/samples", json=upload))[0] == 200
    status, sessions = await asked(served, "alice", "GET", "/v1/sessions")
    assert (status, sessions["sessions"]) == (200, [])
    assert await traces(served.owner, str(user_id("alice"))) == {}
    counts = json.loads((await archive(served, "alice"))["manifest.json"])["files"]
    assert {each["rows"] for each in counts} == {0}


async def test_an_issuer_that_is_away_is_asked_again_until_the_account_is_gone(served: Served) -> None:
    alice = user_id("alice")
    await plant(served.owner, alice)
    served.issuer.answers[:] = [503, 403, 200]
    before = dict(metrics.erasures)
    status, receipt = await asked(served, "alice", "DELETE", "/v1/me")
    assert (status, receipt["status"], receipt["account"]) == (202, "erasing", "pending")
    assert set(await traces(served.owner, str(alice), canary(alice))) == {"erasures"}, "to be gone on with"
    assert (await asked(served, "alice", "PUT", "/v1/me/profile", json={}))[0] == 410
    assert (await asked(served, "alice", "DELETE", "/v1/me"))[0] == 202
    status, again = await asked(served, "alice", "DELETE", "/v1/me")
    assert (status, again["status"], again["account"]) == (200, "erased", "deleted")
    assert (again["receipt"], again["rows"]) == (receipt["receipt"], receipt["rows"])
    counted = {name: n - before.get(name, 0) for name, n in metrics.erasures.items()}
    assert counted == {"put_off": 2, "key_refused": 1, "erased": 1}
    assert await traces(served.owner, str(alice), canary(alice)) == {}


async def test_an_account_that_is_gone_already_is_no_trouble(
    tmp_path: Path, database_url: str, owner: asyncpg.Connection
) -> None:
    payload = base64.urlsafe_b64encode(json.dumps({"role": "service_role"}).encode()).decode().rstrip("=")
    legacy = f"header.{payload}.signature"
    async with served_with(tmp_path, database_url, owner, SUPABASE_SERVICE_KEY=legacy) as served:
        served.issuer.answers[:] = [404]
        assert (await asked(served, "alice", "DELETE", "/v1/me"))[1]["account"] == "absent"
        assert served.issuer.asked[0][1:] == (legacy, f"Bearer {legacy}")


async def test_a_wrong_address_is_no_account_that_is_gone(served: Served) -> None:
    """Otherwise a receipt would say of an account that stays that there is none."""
    served.issuer.answers[:] = [-404, 404]
    status, receipt = await asked(served, "alice", "DELETE", "/v1/me")
    assert (status, receipt["status"], receipt["account"]) == (202, "erasing", "pending")
    status, receipt = await asked(served, "alice", "DELETE", "/v1/me")
    assert (status, receipt["status"], receipt["account"]) == (200, "erased", "absent")


async def test_without_a_key_the_receipt_says_that_the_account_stays(
    tmp_path: Path, database_url: str, owner: asyncpg.Connection
) -> None:
    async with served_with(tmp_path, database_url, owner) as served:
        status, receipt = await asked(served, "alice", "DELETE", "/v1/me")
        assert (status, receipt["account"]) == (200, "not_configured")
        assert served.issuer.asked == []


async def test_the_document_is_of_these_operations() -> None:
    made = document((privacy.export_me, privacy.erase_me), ())
    answers = made["paths"]["/v1/me/export"]["get"]["responses"]
    assert set(answers) == {"200", "401", "403", "410", "429", "503"}
    assert list(answers["200"]["content"]) == ["application/zip"]
    assert set(made["paths"]["/v1/me"]["delete"]["responses"]) == {
        "200",
        "202",
        "401",
        "403",
        "410",
        "429",
        "503",
    }
