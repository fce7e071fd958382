"""What a user has spent, and what happens when nothing is left, over a real socket with a real model."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent_backend.app import create_app
from agent_backend.telemetry import metrics

from ..consenting import agree
from ..emulator import emulator
from .serving import headers_for, serving, settings_for


@pytest.fixture(scope="module")
def model() -> Generator[str]:
    with emulator() as url:
        yield url


@asynccontextmanager
async def served(
    folder: Path, database_url: str, model: str, **env: str
) -> AsyncGenerator[aiohttp.ClientSession]:
    settings = settings_for(
        folder, database_url, ANTHROPIC_BASE_URL=model, ANTHROPIC_API_KEY="sk-test", **env
    )
    async with (
        serving(create_app(settings), settings) as url,
        aiohttp.ClientSession(url, headers=headers_for(settings)) as session,
    ):
        await agree(session)
        yield session


async def usage(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/v1/me/usage") as response:
        assert response.status == 200
        return await response.json()


async def begin(http: aiohttp.ClientSession) -> str:
    session = str(uuid4())
    async with http.put(f"/v1/sessions/{session}", json={"agent": "coach"}) as response:
        assert response.status == 201
    return session


async def say(http: aiohttp.ClientSession, session: str, text: str, turn: str = "") -> tuple[int, str, Any]:
    """Send a message, follow it to its end; return the status, the text of the answer, the last event."""
    url = f"/v1/sessions/{session}/turns/{turn or uuid4()}"
    async with http.put(url, json={"content": text}, headers={"Accept": "text/event-stream"}) as response:
        if response.status != 200:
            return response.status, "", await response.json(content_type=None)
        raw = (await response.read()).decode()
    lines = [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: ")]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    words = "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")
    return 200, words, events[-1]


def tomorrow() -> dt.datetime:
    return dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC) + dt.timedelta(days=1)


async def test_nothing_is_spent_before_the_first_message(
    tmp_path: Path, database_url: str, model: str
) -> None:
    async with served(tmp_path, database_url, model, USER_USD_PER_DAY="1.50") as http:
        before, body = tomorrow(), await usage(http)
    assert body["agents"] == []
    assert body["day"]["spent_usd_micros"] == body["day"]["turns"] == 0
    assert body["day"]["limit_usd_micros"] == body["day"]["left_usd_micros"] == 1_500_000
    assert dt.datetime.fromisoformat(body["day"]["resets_at"]) in (before, tomorrow())


async def test_what_a_turn_cost_is_in_every_account(tmp_path: Path, database_url: str, model: str) -> None:
    async with served(tmp_path, database_url, model) as http:
        session = await begin(http)
        turn = str(uuid4())
        await say(http, session, "Hello [[emulator: tokens=20]]", turn)
        async with http.get(f"/v1/sessions/{session}/turns/{turn}") as response:
            cost = (await response.json())["usage"]["cost_usd_micros"]
        body = await usage(http)
    assert cost > 0
    [coach] = body["agents"]
    assert coach["agent"] == "coach"
    for account in (body["day"], body["month"], coach["day"], coach["month"]):
        assert account["spent_usd_micros"] == cost
        assert account["reserved_usd_micros"] == account["estimated_usd_micros"] == 0
        assert (account["turns"], account["model_calls"]) == (1, 1)
        assert account["output_tokens"] >= 20
    assert body["day"]["left_usd_micros"] == body["day"]["limit_usd_micros"] - cost
    assert coach["month"]["limit_usd_micros"] is None


async def test_a_used_up_day_ends_in_words_and_then_refuses(
    tmp_path: Path, database_url: str, model: str
) -> None:
    """The cap bounds the answer, the coach says so, and the next message is a 402 that says until when."""
    async with served(tmp_path, database_url, model, USER_USD_PER_DAY="0.01") as http:
        await http.put("/v1/me/profile", json={"time_zone": "Europe/Berlin", "locale": "de-DE"})
        session = await begin(http)
        turn = str(uuid4())
        status, words, last = await say(http, session, "Hello [[emulator: tokens=900]]", turn)
        assert status == 200
        assert last["result"] == {"stopReason": "notice", "notice": "budget.user_day"}
        assert "Für heute ist dein Kontingent aufgebraucht" in words
        async with http.get(f"/v1/sessions/{session}/turns/{turn}") as response:
            told = await response.json()
        assert told["state"] == "completed"
        assert 0 < told["usage"]["cost_usd_micros"] <= 10_000
        again, _, _ = await say(http, session, "Hello [[emulator: tokens=900]]", turn)
        assert again == 200, "a message that was taken stays taken"
        body = await usage(http)
        status, _, problem = await say(http, session, "More")
        assert status == 402
        assert problem["code"] == "budget_exceeded"
        assert problem["scope"] == "user_day"
        assert problem["left_usd_micros"] == 0
        assert dt.datetime.fromisoformat(problem["resets_at"]) == tomorrow()
    assert body["day"]["spent_usd_micros"] == told["usage"]["cost_usd_micros"]


async def test_a_global_cap_that_keeps_users_out_is_an_error_in_the_log_once(
    tmp_path: Path, database_url: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left may be too little for any call long before 100 % are spent."""
    before = metrics.over_budget["global_day"]
    async with served(tmp_path, database_url, model, GLOBAL_USD_PER_DAY="0.01") as http:
        for _ in range(3):
            session = await begin(http)
            status, _, last = await say(http, session, "Hello [[emulator: tokens=900]]")
            assert status == 402 or last["result"]["notice"] == "budget.global_day"
    assert metrics.over_budget["global_day"] == before + 3
    assert capsys.readouterr().err.count('"action":"global_budget_refuses"') == 1


async def test_an_attempt_that_may_be_billed_is_paid_before_the_next(
    tmp_path: Path, database_url: str, model: str
) -> None:
    """The connection breaks before a byte, the call is made again: the account holds both."""
    async with served(tmp_path, database_url, model) as http:
        session = await begin(http)
        fault = f'[[emulator: id="{uuid4().hex}" tokens=5 fault=disconnect fault_times=1]]'
        status, _, last = await say(http, session, fault)
        assert (status, last["type"]) == (200, "RUN_FINISHED")
        day = (await usage(http))["day"]
        await say(http, session, "[[emulator: fault=400]]")
        after = (await usage(http))["day"]
    assert day["model_calls"] == 2
    assert 0 < day["estimated_usd_micros"] < day["spent_usd_micros"]
    assert day["reserved_usd_micros"] == 0
    assert after["spent_usd_micros"] == day["spent_usd_micros"], "what is refused costs nothing"


async def test_an_answer_that_is_stopped_is_charged_as_estimated(
    tmp_path: Path, database_url: str, model: str
) -> None:
    async with served(tmp_path, database_url, model) as http:
        session, turn = await begin(http), str(uuid4())
        url = f"/v1/sessions/{session}/turns/{turn}"
        text = "[[emulator: thinking=0 tokens=900 delay_ms=20]]"
        headers = {"Accept": "text/event-stream"}
        async with http.put(url, json={"content": text}, headers=headers) as response:
            await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
            async with http.post(url + "/cancel") as cancelled:
                assert cancelled.status == 202
            assert b"RUN_FINISHED" in await response.read()
        day = (await usage(http))["day"]
    assert day["reserved_usd_micros"] == 0
    assert 0 < day["estimated_usd_micros"] == day["spent_usd_micros"] < 12_000
