"""Errors of a real server arrive at a Sentry: who can act on them reads enough, and nothing of anybody."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from . import isolation
from .client import Client, ended, say, take
from .ingest import KEY, ingest
from .stack import Site

AsUser = Callable[..., Client]

MAKE = (
    "CREATE FUNCTION myhealth.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'canary-text of %: 76543.03125 steps', $1; END $$"
)


@asynccontextmanager
async def broken(database: asyncpg.Connection, name: str) -> AsyncGenerator[None]:
    """Replace a function of the schema by one that raises, and quotes what it was given."""
    [row] = await database.fetch(
        "SELECT pg_get_function_identity_arguments(oid) AS arguments, pg_get_function_result(oid) AS returns"
        " FROM pg_proc WHERE proname = $1 AND pronamespace = 'myhealth'::regnamespace",
        name,
    )
    arguments, returns = row
    await database.execute(f"ALTER FUNCTION myhealth.{name}({arguments}) RENAME TO {name}_away")
    await database.execute(MAKE.format(name=name, arguments=arguments, returns=returns))
    try:
        yield
    finally:
        await database.execute(f"DROP FUNCTION myhealth.{name}({arguments})")
        await database.execute(f"ALTER FUNCTION myhealth.{name}_away({arguments}) RENAME TO {name}")


async def test_a_tool_a_turn_and_a_request_that_break_are_told(
    site: Site, database: asyncpg.Connection
) -> None:
    user = str(uuid4())
    token = isolation.token(site, user, email="canary-mail@example.org")
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "canary-agent"}
    env = {"RELEASE": "0123abc", "ANTHROPIC_API_KEY": "canary-key", "LOG_LEVEL": "debug"}
    with ingest() as sentry, site.server("told", SENTRY_DSN=sentry.dsn, **env) as backend:
        async with aiohttp.ClientSession(headers=headers) as http:
            client = Client(http, backend.url)
            session = await client.new_session()
            arguments = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}
            content = say("canary-message", tool="get_daily_metrics", args=arguments)
            async with broken(database, "health_daily"):
                await take(client.answer(session, content), ended)
                await _fail(client, 1)
            async with broken(database, "reserve"):
                turn = await client.begin(session, say("canary-message"))
                events = await take(client.sse(session, turn["cursor"]), ended)
        assert events[-1].type == "RUN_ERROR"
        await asyncio.to_thread(sentry.wait_for, 3)
    told = {event["tags"]["action"]: event for event in sentry.events}
    assert set(told) == {"tool_broke", "request_failed", "turn_broke"}
    assert set(sentry.items) == {"event"}
    for event in sentry.events:
        _has_what_it_may(event)
    assert told["tool_broke"]["tags"]["tool"] == "get_daily_metrics"
    assert told["request_failed"]["tags"]["status"] == "500"
    assert UUID(told["turn_broke"]["tags"]["turn_id"]) == UUID(turn["id"])
    assert UUID(told["turn_broke"]["tags"]["session_id"]) == UUID(session)
    heard = sentry.heard()
    for canary in ("canary", "76543", user, socket.gethostname(), *token.split(".")):
        assert canary not in heard
    assert KEY in heard, "the whole request is looked at"
    assert heard.count("Connection: close") == len(sentry.requests), "none is kept over a suspend"


def _has_what_it_may(event: dict[str, Any]) -> None:
    """Check that an event says what broke where, by names and lines, and has no other field."""
    fields = {"environment", "event_id", "exception", "level", "platform", "release", "tags", "timestamp"}
    assert set(event) == fields
    assert (event["release"], event["environment"]) == ("0123abc", "development")
    assert event["tags"]["machine"] == "told"
    error = event["exception"]["values"][-1]
    assert error["type"] == "RaiseError"
    frames = error["stacktrace"]["frames"]
    assert frames[-1]["module"].startswith("asyncpg")
    assert any(frame["in_app"] and frame["module"].startswith("agent_backend.") for frame in frames)
    assert {key for frame in frames for key in frame} == {"module", "function", "lineno", "in_app"}


async def _fail(client: Client, times: int) -> list[float]:
    """Ask for what ends with 500, one after the other; return the seconds of each."""
    query = "/v1/health/daily?metric=steps&start=2026-11-01&end=2026-11-02"
    took: list[float] = []
    for _ in range(times):
        began = time.monotonic()
        assert (await client.call("GET", query))[0] == 500
        took.append(time.monotonic() - began)
    return took


@pytest.mark.parametrize("kind", ["refuses", "silent", "no address"])
async def test_a_sentry_that_cannot_be_reached_costs_nothing(
    site: Site, as_user: AsUser, database: asyncpg.Connection, kind: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == "silent":
            silent.listen()  # the kernel accepts, nobody ever answers
        host = {"no address": "sentry.invalid"}.get(kind, f"127.0.0.1:{silent.getsockname()[1]}")
        with site.server(SENTRY_DSN=f"http://{KEY}@{host}/7") as backend:
            async with broken(database, "health_daily"):
                took = await _fail(as_user(backend), 60)
            began = time.monotonic()
            assert await asyncio.to_thread(backend.terminate) == 0
            stopped = time.monotonic() - began
    # Nobody waits for it: that would be seconds.
    assert sorted(took)[len(took) // 2] < 0.5
    assert stopped < 5
    assert {line["action"] for line in backend.errors()} == {"request_failed"}


async def test_the_last_errors_before_the_end_still_arrive_and_a_storm_in_part(
    site: Site, as_user: AsUser, database: asyncpg.Connection
) -> None:
    with ingest() as sentry, site.server() as plain, site.server("one", SENTRY_DSN=sentry.dsn) as backend:
        async with broken(database, "health_daily"):
            await _fail(as_user(plain), 1)
            await _fail(as_user(backend), 50)
        assert await asyncio.to_thread(backend.terminate) == 0
        assert 30 <= len(sentry.events) < 45
        assert {event["tags"]["machine"] for event in sentry.events} == {"one"}
