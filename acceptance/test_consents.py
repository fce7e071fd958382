"""Consents: without them nothing reaches the model, and withdrawing stops what runs, on every server."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import jwt
import pytest

from .client import PATIENCE, Client, ended, say, seen, take
from .conftest import AsUser, Pair
from .stack import Site

HEALTH, AI = "health_data_processing", "third_party_ai"
HEART = {
    "name": "read_heart",
    "description": "Reads the heart rate on the phone.",
    "input_schema": {"type": "object", "properties": {}},
}
STEPS = {
    "kind": "quantity",
    "metric": "steps",
    "id": str(UUID(int=1)),
    "start": "2026-11-01T10:00:00Z",
    "end": "2026-11-01T10:10:00Z",
    "value": 100,
    "unit": "count",
    "source": "Watch",
    "device": "watch",
}
LONG = say("Hi", thinking=0, tokens=800, delay_ms=20)


class Model:
    """What has reached the emulated model."""

    def __init__(self, site: Site, http: aiohttp.ClientSession) -> None:
        self._url = f"{site.emulator_url}/_emulator/requests?limit=1000"
        self._site = site
        self._http = http

    async def calls(self, user: str) -> int:
        """Count the calls that were made for a user."""
        claims = jwt.decode(
            self._site.headers(user)["Authorization"].removeprefix("Bearer "),
            options={"verify_signature": False},
        )
        reference = hashlib.blake2s(UUID(claims["sub"]).bytes, person=b"provider").hexdigest()
        async with self._http.get(self._url) as response:
            requests = (await response.json())["requests"]
        return sum(each["body"]["metadata"]["user_id"] == reference for each in requests)


@pytest.fixture
def model(site: Site, http: aiohttp.ClientSession) -> Model:
    return Model(site, http)


async def texts(client: Client, locale: str = "de") -> dict[str, dict[str, Any]]:
    status, body = await client.call("GET", "/v1/consents")
    assert status == 200
    return {each["purpose"]: each for each in body["consents"] if each["locale"] == locale}


async def put(client: Client, purpose: str, **changed: Any) -> tuple[int, Any]:
    text = (await texts(client)).get(purpose, {"version": "x", "sha256": "0" * 64})
    body = {"version": text["version"], "text_hash": text["sha256"], "locale": "de", **changed}
    return await client.call("PUT", f"/v1/me/consents/{purpose}", json=body)


async def withdraw(client: Client, purpose: str = HEALTH) -> dict[str, Any]:
    status, body = await client.call("DELETE", f"/v1/me/consents/{purpose}")
    assert status == 200, body
    return body


async def agree(client: Client) -> None:
    for purpose in (HEALTH, AI):
        status, body = await put(client, purpose)
        assert status == 200, body


async def states(client: Client) -> dict[str, dict[str, Any]]:
    status, body = await client.call("GET", "/v1/me/consents")
    assert status == 200
    return {each["purpose"]: each for each in body["consents"]}


async def session_of(client: Client, **more: Any) -> str:
    """Make a session without agreeing to anything."""
    session = str(uuid4())
    status, _ = await client.call("PUT", f"/v1/sessions/{session}", json={"agent": "coach", **more})
    assert status == 201
    return session


def agui(thread: str) -> dict[str, Any]:
    return {
        "threadId": thread,
        "runId": str(uuid4()),
        "messages": [{"id": "m", "role": "user", "content": say(tokens=1)}],
    }


async def test_texts_are_given_by_hash_and_what_is_wrong_is_named(pair: Pair, as_user: AsUser) -> None:
    client = as_user(pair.a, "consents-reader")
    for text in (await texts(client)).values():
        assert hashlib.sha256(text["text"].encode()).hexdigest() == text["sha256"]
    assert {each["given"] for each in (await states(client)).values()} == {False}
    for changed, field in (
        ({"version": "1999-01-01"}, "$.version"),
        ({"locale": "fr"}, "$.locale"),
        ({"locale": "en"}, "$.text_hash"),
        ({"text_hash": "0" * 64}, "$.text_hash"),
        ({"text_hash": "z"}, "$.text_hash"),
    ):
        status, problem = await put(client, AI, **changed)
        assert (status, problem["errors"][0]["field"]) == (422, field)
    assert (await put(client, "advertising"))[0] == 404
    assert (await client.call("DELETE", "/v1/me/consents/advertising"))[0] == 404
    assert {each["given"] for each in (await states(client)).values()} == {False}
    status, first = await put(client, AI)
    assert (status, first["given"], first["is_current"], first["locale"]) == (200, True, True, "de")
    assert (await put(client, AI))[1] == first
    gone = await withdraw(client, AI)
    assert (gone["given"], gone["version"], gone["given_at"]) == (False, first["version"], first["given_at"])
    assert await withdraw(client, AI) == gone
    assert (await states(client))[AI] == gone


async def test_no_way_leads_to_the_model_or_the_data_without(
    pair: Pair, as_user: AsUser, model: Model
) -> None:
    client = as_user(pair.a, "refuser")
    session = await session_of(client)
    versions = {each["purpose"]: each["version"] for each in (await texts(client)).values()}
    turn = f"/v1/sessions/{session}/turns/{uuid4()}"
    ways = [
        ("PUT", turn, {"content": say(tokens=1)}, {}),
        ("PUT", turn, {"content": say(tokens=1)}, {"Accept": "text/event-stream"}),
        ("POST", "/v1/agui/coach", agui(session), {}),
        ("POST", "/v1/agui/coach", agui(str(uuid4())), {"Accept": "text/event-stream"}),
    ]
    for given, missing in (([], [HEALTH, AI]), ([HEALTH], [AI]), ([AI], [HEALTH])):
        for purpose in given:
            await put(client, purpose)
        for method, path, body, headers in ways:
            status, problem = await client.call(method, path, json=body, headers=headers)
            assert (status, problem["code"]) == (403, "consent_required")
            assert problem["missing"] == [{"purpose": each, "version": versions[each]} for each in missing]
        status, problem = await client.call("PUT", "/v1/health/samples", json={"samples": [STEPS]})
        assert status == (403 if HEALTH in missing else 200), problem
        if HEALTH in missing:
            assert problem["missing"] == [{"purpose": HEALTH, "version": versions[HEALTH]}]
        for purpose in given:
            await withdraw(client, purpose)
    status, daily = await client.call("GET", "/v1/health/daily?metric=steps&start=2026-11-01&end=2026-11-01")
    assert (status, daily["days"][0]["value"]) == (200, 100), "one's own data stays readable"
    assert await model.calls("refuser") == 0


async def test_withdrawing_elsewhere_in_mid_stream_ends_the_turn_and_what_waits_behind_it(
    pair: Pair, as_user: AsUser, model: Model
) -> None:
    a, b = as_user(pair.a, "leaver"), as_user(pair.b, "leaver")
    session = await a.new_session()
    turn = await a.begin(session, LONG)
    queued = await b.begin(session, say(tokens=1))
    await take(a.sse(session, turn["cursor"]), seen("TEXT_MESSAGE_CONTENT"))
    began = asyncio.get_running_loop().time()
    await withdraw(b, AI)
    assert asyncio.get_running_loop().time() - began < PATIENCE / 4
    assert (await a.turn(session, turn["id"]))["state"] == "cancelled", "when it is answered"
    await take(a.sse(session), lambda events: sum(each.type == "RUN_FINISHED" for each in events) == 2)
    assert (await a.turn(session, queued["id"]))["state"] == "cancelled"
    assert await model.calls("leaver") == 1


async def test_a_parked_turn_of_a_user_who_withdrew_ends_and_takes_no_answer(
    pair: Pair, as_user: AsUser, model: Model
) -> None:
    a, b = as_user(pair.a, "parker"), as_user(pair.b, "parker")
    session = await a.new_session(device_tools=[HEART])
    turn = await a.begin(session, say("My pulse?", thinking=0, tool="read_heart", args={}, tokens=2))
    pending = (await take(a.sse(session, turn["cursor"]), seen("CUSTOM")))[-1].event["value"]
    await withdraw(b)
    path = f"/v1/sessions/{session}/tool-calls/{pending['toolCallId']}/result"
    for client in (a, b):
        status, problem = await client.call("PUT", path, json={"status": "ok", "content": "62"})
        assert (status, problem["code"]) == (403, "consent_required")
        status, problem = await client.put_turn(session, say(tokens=1))
        assert (status, problem["code"]) == (403, "consent_required")
    await take(a.sse(session, turn["cursor"]), ended)
    assert (await a.turn(session, turn["id"]))["state"] == "cancelled"
    assert await model.calls("parker") == 1


async def test_who_takes_over_a_turn_of_a_user_who_withdrew_ends_it(
    site: Site, as_user: AsUser, model: Model
) -> None:
    # The other takes over a lease time after the kill; the consent has to be withdrawn by then.
    with site.server(LEASE_SECONDS="2") as a, site.server(LEASE_SECONDS="2") as b:
        owner, other = as_user(a, "heir"), as_user(b, "heir")
        session = await owner.new_session()
        turn = await owner.begin(session, LONG)
        await take(owner.sse(session, turn["cursor"]), seen("TEXT_MESSAGE_CONTENT"))
        a.kill()
        await withdraw(other)
        await take(other.sse(session, turn["cursor"]), ended)
        assert (await other.turn(session, turn["id"]))["state"] == "cancelled"
        assert await model.calls("heir") == 1
        assert b.errors() == []


async def test_a_consent_to_a_version_that_counts_no_more_is_none(
    pair: Pair, as_user: AsUser, database: asyncpg.Connection
) -> None:
    client = as_user(pair.a, "oldtimer")
    await agree(client)
    user = await database.fetchval("SELECT user_id FROM myhealth.consents ORDER BY id DESC LIMIT 1")
    await database.execute("DELETE FROM myhealth.consents WHERE user_id = $1 AND purpose = $2", user, AI)
    await database.execute(
        "INSERT INTO myhealth.consents (user_id, purpose, version, text_hash, locale) "
        "VALUES ($1, $2, '2020-01-01', $3, 'de')",
        user,
        AI,
        bytes(32),
    )
    state = (await states(client))[AI]
    assert (state["given"], state["is_current"], state["version"]) == (False, False, "2020-01-01")
    session = await session_of(client)
    status, problem = await client.put_turn(session, say(tokens=1))
    assert (status, [each["purpose"] for each in problem["missing"]]) == (403, [AI])
    await agree(client)
    assert (await client.put_turn(session, say(tokens=1)))[0] == 202


async def test_after_a_withdrawal_is_answered_no_call_begins_on_any_server(
    pair: Pair, as_user: AsUser, model: Model
) -> None:
    """Turns on two servers race with the withdrawal; what counts is the model's own list."""
    rng = random.Random(1)
    clients = [as_user(server, "racer") for server in pair]
    before = 0
    for _ in range(5):
        await agree(clients[0])
        sessions = [await session_of(clients[n % 2]) for n in range(6)]

        async def talk(n: int, session: str) -> None:
            await asyncio.sleep(rng.random() * 0.05)
            # The tool makes for a second call; some turns wait behind another.
            content = say(
                "Hi",
                thinking=0,
                tool="get_daily_metrics",
                args={"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"},
                tokens=40,
            )
            for client in (clients[n % 2], clients[(n + 1) % 2]):
                status, body = await client.put_turn(session, content)
                assert status == 202 or body["code"] == "consent_required", body

        talking = [asyncio.create_task(talk(n, session)) for n, session in enumerate(sessions)]
        await asyncio.sleep(rng.random() * 0.08)
        await withdraw(clients[rng.randrange(2)], rng.choice((HEALTH, AI)))
        before = await model.calls("racer")
        await asyncio.gather(*talking)
        for session in sessions:
            await _finished(clients[0], session)
        assert await model.calls("racer") == before
    assert before > 0


async def _finished(client: Client, session: str) -> None:
    """Wait until nothing of the session is under way: what is asked of it now is refused."""
    async with asyncio.timeout(PATIENCE):
        while True:
            events = [each.type for each in await client.log(session)]
            over = events.count("RUN_FINISHED") + events.count("RUN_ERROR")
            if events.count("RUN_STARTED") == over:
                return
            await asyncio.sleep(0.02)
