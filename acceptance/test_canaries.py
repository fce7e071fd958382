"""Canaries in everything that is somebody's or secret, through a day on which everything goes wrong.

Afterwards none of them is in anything that is written, published or told to somebody else: logs at level
debug, what Sentry gets, metrics, problems, NOTIFYs, process lists, Postgres' own log and its list of running
statements.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import aiohttp
import asyncpg
import psutil
import pytest

from . import isolation
from .client import PATIENCE, Client, ended, say, seen, take
from .ingest import Ingest, ingest
from .isolation import HEART
from .ports import free_port
from .stack import Backend, OwnPostgres, Site, emulator, own_postgres, with_database

A, B = str(uuid4()), str(uuid4())


class Canaries:
    """Strings that stand nowhere else; by what they are planted in."""

    def __init__(self) -> None:
        self._made: dict[str, str] = {}

    def __getitem__(self, what: str) -> str:
        return self._made.setdefault(what, f"canary-{what}-{uuid4().hex[:12]}")

    def keep(self, what: str, value: str) -> str:
        self._made[what] = value
        return value

    def found_in(self, text: str, *allowed: str) -> list[str]:
        """Return the names of those that stand in a text."""
        return [name for name, value in self._made.items() if value in text and name not in allowed]


class Day:
    """One deployment with secrets that are canaries, and what was heard of it."""

    def __init__(
        self, site: Site, database: OwnPostgres, canaries: Canaries, metrics_port: int, sentry: Ingest
    ) -> None:
        self.site = site
        self.database = database
        self.canaries = canaries
        self.metrics_port = metrics_port
        self.sentry = sentry
        self.told_others: list[str] = []


@pytest.fixture
def day(tmp_path: Path) -> Generator[Day]:
    with own_postgres() as database, emulator() as model, ingest() as sentry:
        site = Site(database.url, model, tmp_path / "keys")
        site.command("migrate")
        site.headers()
        yield Day(site, database, Canaries(), free_port(), sentry)


@pytest.fixture
def backend(day: Day) -> Generator[Backend]:
    """Run the server; its password is in the URL, whether this Postgres asks for it or not."""
    secrets = {
        "ANTHROPIC_API_KEY": day.canaries["model-key"],
        "SUPABASE_SERVICE_KEY": "sb_secret_" + day.canaries["service-key"],
        "DATABASE_URL": _with_password(day.database.url, day.canaries["database-password"]),
    }
    settings = {
        "LOG_LEVEL": "debug",
        "METRICS_PORT": str(day.metrics_port),
        "SENTRY_DSN": day.sentry.dsn,
    }
    with day.site.server("canaries", **secrets, **settings) as server:
        yield server


def _with_password(url: str, password: str) -> str:
    head, _, rest = url.partition("@")
    assert rest
    return f"{head.rstrip(':')}:{password}@{rest}"


@pytest.fixture
async def client(day: Day, backend: Backend) -> AsyncGenerator[Client]:
    """Yield A, whose token says more of it than we want to know."""
    canaries = day.canaries
    metadata = {"full_name": canaries["name"]}
    signed = isolation.token(day.site, A, email=canaries["email"], user_metadata=metadata)
    token = canaries.keep("token", signed)
    headers = {"Authorization": f"Bearer {token}", "User-Agent": canaries["user-agent"]}
    async with aiohttp.ClientSession(headers=headers) as http:
        yield Client(http, backend.url)


async def _turn(client: Client, session: str, content: str) -> None:
    with suppress(aiohttp.ClientError, AssertionError, TimeoutError):
        await take(client.answer(session, content), ended)


async def _told_to_b(day: Day, backend: Backend, path: str = "/v1/sessions") -> None:
    """Keep what somebody else, and somebody without a token, is told right now."""
    headers = {"Authorization": f"Bearer {isolation.token(day.site, B)}"}
    async with aiohttp.ClientSession(headers=headers) as http, asyncio.timeout(PATIENCE):
        for each in (path, "/readyz", "/version", "/v1/agents"):
            async with http.get(backend.url + each) as response:
                day.told_others.append(f"{response.headers} {await response.text()}")


# --- the day --------------------------------------------------------------------------------------------


async def _talk(day: Day, client: Client) -> str:
    """Talk about everything: health data, a tool on the device, reasoning, a title."""
    c = day.canaries
    span = {"start": "2026-11-01T08:00:00Z", "end": "2026-11-01T09:00:00Z", "device": "watch"}
    value = {"kind": "quantity", "id": str(uuid4()), "metric": "steps", "value": 76543.03125, "unit": "count"}
    c.keep("health-value", "76543.03125")
    note = {"kind": "workout", "id": str(uuid4()), "activity": c["activity"], "duration_s": 60}
    await client.consent()
    samples = [{**value, **span, "source": c["source"]}, {**note, **span, "note": c["note"], "source": "x"}]
    status, body = await client.call("PUT", "/v1/health/samples", json={"samples": samples})
    assert status == 200, body
    session = str(uuid4())
    made = {"agent": "coach", "title": c["title"], "device_tools": [HEART]}
    assert (await client.call("PUT", f"/v1/sessions/{session}", json=made))[0] == 201
    arguments = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}
    await _turn(client, session, say(c["message"], text=c["answer"], thinking=3))
    await _turn(client, session, say(c["message"], tool="get_daily_metrics", args=arguments))
    turn = await client.begin(session, say(c["message"], tool="read_heart", args={"day": c["argument"]}))
    await take(client.sse(session, turn["cursor"]), seen("CUSTOM"))
    (_, body) = await client.call("GET", f"/v1/sessions/{session}/tool-calls")
    path = f"/v1/sessions/{session}/tool-calls/{body['tool_calls'][0]['id']}"
    answer = {"status": "ok", "content": c["device-result"]}
    assert (await client.call("PUT", path + "/result", json=answer))[0] == 200
    await take(client.sse(session, turn["cursor"]), ended)
    return session


async def _be_wrong(day: Day, client: Client, session: str) -> None:
    """Send what cannot be read, with canaries where it cannot."""
    c = day.canaries
    turn = f"/v1/sessions/{session}/turns/{uuid4()}"
    await client.call("PUT", turn, json={"content": [c["wrong-type"]]})
    await client.call("PUT", turn, json={"content": "x", c["wrong-field"]: 1})
    await client.call("PUT", turn, json={"content": c["control"] + "\x00"})
    await client.call("PUT", turn, data=f'{{"content": "{c["broken-json"]}', headers=_JSON)
    await client.call("PUT", turn, data=b'{"content": "\xff' + c["not-utf8"].encode() + b'"}', headers=_JSON)
    await client.call("GET", f"/v1/sessions/{session}/events", params={"after": c["wrong-cursor"]})
    await client.call("GET", f"/v1/sessions/{c['wrong-id']}")
    await client.call("GET", f"/{c['wrong-path']}")
    await client.call("GET", "/v1/sessions", headers={"Authorization": f"Bearer {c['wrong-token']}"})
    for bad in ({"value": c["wrong-value"]}, {"unit": c["wrong-unit"]}, {"start": c["wrong-time"]}):
        sample = {"kind": "quantity", "id": str(uuid4()), "metric": "steps", "value": 1, "unit": "count"}
        span = {"start": "2026-11-01T08:00:00Z", "end": "2026-11-01T09:00:00Z"}
        body = {"samples": [{**sample, **span, "source": "x", "device": "watch", **bad}]}
        assert (await client.call("PUT", "/v1/health/samples", json=body))[0] == 422
    async with client.socket() as socket:
        await socket.send_str(c["wrong-frame"])
        await socket.receive_str()


_JSON = {"Content-Type": "application/json"}


async def _let_the_model_fail(day: Day, client: Client, session: str) -> None:
    c = day.canaries
    for fault in ("500", "400", "malformed;after=1", "truncated;after=1", "disconnect"):
        await _turn(client, session, say(c["while-the-model-fails"], fault=fault, tokens=3))
    await _turn(client, session, say(c["bad-tool"], tool="get_daily_metrics", args={"metric": c["bad-args"]}))
    await _turn(client, session, say(c["no-tool"], tool="no_such_tool", args={"x": c["no-args"]}))
    await _turn(client, session, say(c["refused"], stop="refusal", text=c["refusal"]))


async def _break_the_database(day: Day, client: Client, session: str) -> None:
    """Let requests fail inside Postgres: a constraint that refuses a message, a function that is missing."""
    c = day.canaries
    await _execute(day, "ALTER FUNCTION myhealth.health_daily RENAME TO health_daily_away")
    arguments = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}
    await _turn(client, session, say(c["tool-breaks"], tool="get_daily_metrics", args=arguments))
    query = "/v1/health/daily?metric=steps&start=2026-11-01&end=2026-11-02"
    assert (await client.call("GET", query))[0] == 500
    await _execute(day, "ALTER FUNCTION myhealth.health_daily_away RENAME TO health_daily")
    await _execute(
        day,
        "ALTER TABLE myhealth.turns ADD CONSTRAINT refuses CHECK (content::text NOT LIKE '%refuse-this%')",
        "ALTER TABLE myhealth.health_quantities ADD CONSTRAINT refuses CHECK (value <> 12345.03125)",
    )
    status, _ = await client.put_turn(session, f"{c['refused-row']} refuse-this")
    assert status == 500
    c.keep("refused-value", "12345.03125")
    span = {"start": "2026-11-01T08:00:00Z", "end": "2026-11-01T09:00:00Z", "source": "x", "device": "watch"}
    sample = {
        "kind": "quantity",
        "id": str(uuid4()),
        "metric": "steps",
        "value": 12345.03125,
        "unit": "count",
    }
    body = {"samples": [{**sample, **span}]}
    assert (await client.call("PUT", "/v1/health/samples", json=body))[0] == 500


async def _cut_and_freeze(day: Day, backend: Backend, client: Client, session: str) -> None:
    """Take the database away in the middle of an answer, and the process's time."""
    c = day.canaries
    long = {"tokens": 40, "delay_ms": 10}
    turn = await client.begin(session, say(c["while-the-database-goes"], **long))
    await asyncio.to_thread(day.database.stop, "immediate")
    status, _ = await client.put_turn(session, c["while-it-is-away"])
    assert status == 503
    await asyncio.to_thread(day.database.start)
    async with asyncio.timeout(PATIENCE):
        while await _state(client, session, turn["id"]) != "completed":
            await asyncio.sleep(0.05)
    turn = await client.begin(session, say(c["while-it-is-frozen"], **long))
    backend.freeze()
    await asyncio.sleep(1.3)  # longer than the lease
    backend.thaw()
    async with asyncio.timeout(PATIENCE):
        while await _state(client, session, turn["id"]) not in ("completed", "failed"):
            await asyncio.sleep(0.05)


async def _state(client: Client, session: str, turn: str) -> str | None:
    with suppress(aiohttp.ClientError):
        status, body = await client.call("GET", f"/v1/sessions/{session}/turns/{turn}")
        return body["state"] if status == 200 else None
    return None


async def _execute(day: Day, *statements: str) -> None:
    connection = await asyncpg.connect(day.database.url)
    try:
        for each in statements:
            await connection.execute(each)
    finally:
        await connection.close()


async def _running_statements(day: Day, client: Client, session: str) -> tuple[str, list[str]]:
    """Return what Postgres shows of running statements in the middle of a turn, and its NOTIFYs."""
    heard: list[str] = []

    def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard.append(str(payload))

    connection = await asyncpg.connect(day.database.url)
    try:
        await connection.add_listener("myhealth", hear)
        turn = await client.begin(session, say(day.canaries["while-looked-at"], tokens=20, delay_ms=5))
        shown = [str(await connection.fetch("SELECT * FROM pg_stat_activity")) for _ in range(20)]
        await take(client.sse(session, turn["cursor"]), ended)
    finally:
        await connection.close()
    return "".join(shown), heard


def _processes(backend: Backend) -> str:
    """Return the command lines that everybody on the machine can read."""
    family = [psutil.Process(backend.pid), *psutil.Process(backend.pid).children(recursive=True)]
    titles: list[str] = [" ".join(process.cmdline()) for process in family]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("postgres"):
                titles.append(" ".join(process.cmdline()))
    return "\n".join(titles)


async def test_no_canary_gets_out(day: Day, backend: Backend, client: Client) -> None:
    canaries = day.canaries
    session = await _talk(day, client)
    statements, notices = await _running_statements(day, client, session)
    titles = _processes(backend)
    await _be_wrong(day, client, session)
    await _told_to_b(day, backend, f"/v1/sessions/{session}")
    await _let_the_model_fail(day, client, session)
    await _told_to_b(day, backend, f"/v1/sessions/{session}/messages")
    await _cut_and_freeze(day, backend, client, session)
    await _break_the_database(day, client, session)
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{day.metrics_port}/metrics") as response,
    ):
        metrics = await response.text()
    sent_to_the_model = await _model_requests(day)
    backend.end()
    log = json.dumps(backend.log)
    for action in ("request_refused", "request_failed"):
        assert action in log
    assert {"tool_broke", "request_failed"} <= {event["tags"]["action"] for event in day.sentry.events}
    heard = {
        "the server's log": log,
        "Sentry": day.sentry.heard(),
        "metrics": metrics,
        "what others are told": "".join(day.told_others),
        "NOTIFY": f"of {len(notices)}: {notices}",
        "running statements": statements,
        "process list": titles,
    }
    assert all(heard.values()), {name: len(text) for name, text in heard.items()}
    assert {name: found for name, text in heard.items() if (found := canaries.found_in(text))} == {}
    # The model reads the conversation and figures of the user; it reads no names, tokens and keys.
    for secret in ("token", "email", "name", "user-agent", "model-key", "service-key", "database-password"):
        assert canaries[secret] not in sent_to_the_model, secret
    assert A not in sent_to_the_model
    assert canaries["message"] in sent_to_the_model, "it is looked at"
    await _postgres_own_log(day)


async def _model_requests(day: Day) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.get(day.site.emulator_url + "/_emulator/requests?limit=1000") as response,
    ):
        return await response.text()


async def _postgres_own_log(day: Day) -> None:
    """Look at what the database logs of a refused statement, and at the setting that ends it.

    Postgres quotes a refused row to whoever may see it all. The server's role may not, under row level
    security; the owner, as whom the writers of sessions run, may: then the log has the beginning of each
    column, unless it is told to be terse.
    """
    log = day.database.log()
    assert "refuses" in log
    assert day.canaries.found_in(log) == ["refused-row"], "no argument, no health value, no other row"
    mark = len(log)
    await _execute(day, "ALTER SYSTEM SET log_error_verbosity = terse", "SELECT pg_reload_conf()")
    with day.site.server("terse") as backend:
        headers = {"Authorization": f"Bearer {isolation.token(day.site, A)}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            client = Client(http, backend.url)
            status, _ = await client.put_turn(
                await client.new_session(), day.canaries["terse"] + " refuse-this"
            )
            assert status == 500
    told = day.database.log()[mark:]
    assert "refuses" in told
    assert day.canaries.found_in(told) == []


async def test_a_command_that_cannot_work_tells_no_secret(site: Site) -> None:
    """Refused settings, a URL that is none, a database that is not there."""
    c = Canaries()
    missing = _with_password(with_database(site.database_url, "missing"), c["refused-password"])
    keys = {"ANTHROPIC_API_KEY": c["model-key"], "SUPABASE_SERVICE_KEY": c["service-key"]}
    commands = (
        ("serve", {"DATABASE_URL": c["not-a-url"]}),
        ("serve", {"DATABASE_URL": missing}),
        ("migrate", {"DATABASE_URL": missing}),
        ("check-config", {"DATABASE_URL": missing, "PORT": "99999"}),
        ("check-config", {"DATABASE_URL": missing}),
    )

    async def run(command: str, changes: dict[str, str]) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_backend", command),
            env=site.environment(**keys, **changes, LOG_LEVEL="debug"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode()

    said = await asyncio.gather(*(run(*each) for each in commands))
    assert all(said)
    assert [c.found_in(each) for each in said] == [[] for _ in commands]
