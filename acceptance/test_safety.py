"""Red flags with real servers: every reader sees the same, on every server, and the conversation goes on."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import aiohttp

from .client import TRANSPORTS, Client, Received, ended, ends, frames, say, take
from .conftest import AsUser, Pair
from .stack import Site
from .verifier import verify

UNSAFE = "You should eat 700 kcal a day."


async def asked(http: aiohttp.ClientSession, site: Site, needle: str) -> int:
    """Return in how many model calls a text stood."""
    async with http.get(f"{site.emulator_url}/_emulator/requests?limit=200") as response:
        seen: dict[str, Any] = await response.json()
    return sum(needle in json.dumps(each["body"]) for each in seen["requests"])


def notices(events: list[Received]) -> list[str]:
    return [e.event["value"] for e in events if e.type == "CUSTOM" and e.event["name"] == "notice"]


async def everywhere(clients: list[Client], session: str, runs: int) -> list[Received]:
    """Follow a session over both transports on all servers; return what each of them saw."""
    readers = [take(c.follow(t, session), ends(runs)) for c in clients for t in TRANSPORTS]
    first, *others = await asyncio.gather(*readers)
    assert all([e.event for e in other] == [e.event for e in first] for other in others)
    verify(first)
    return first


async def test_a_red_flag_before_the_model_and_what_follows(
    site: Site, pair: Pair, as_user: AsUser, http: aiohttp.ClientSession
) -> None:
    # Nobody else's profile: servers remember them for half a minute.
    a, b = as_user(pair.a, "dora"), as_user(pair.b, "dora")
    mark = uuid4().hex
    status, _ = await a.call("PUT", "/v1/me/profile", json={"time_zone": "Europe/Berlin", "locale": "de-DE"})
    assert status == 200
    session = await a.new_session()
    flagged = await a.begin(session, f"Ich habe starke Brustschmerzen {mark}")
    events = await everywhere([a, b], session, 1)
    assert notices(events) == ["safety.cardiac"]
    assert await asked(http, site, mark) == 0
    assert (await b.turn(session, flagged["id"]))["usage"]["model_calls"] == 0
    said = (await b.messages(session))[-1]
    assert said["name"] == "safety.cardiac"
    assert "112" in said["content"]
    assert "116117" in said["content"]
    # The next turn is the model's, with the fixed text in a history that the provider takes.
    await b.begin(session, say(f"Danke, der Arzt war da {mark}", text="gut", thinking=0))
    events = await everywhere([a, b], session, 2)
    assert events[-1].event["outcome"]["type"] == "success"
    assert await asked(http, site, mark) == 1


async def test_an_unsafe_answer_and_what_follows(site: Site, pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a, "bob"), as_user(pair.b, "bob")
    session = await a.new_session()
    await a.begin(session, say("diet?", text=UNSAFE, thinking=4))
    events = await everywhere([a, b], session, 1)
    texts = "".join(e.event["delta"] for e in events if e.type == "TEXT_MESSAGE_CONTENT")
    assert texts.startswith(UNSAFE)
    assert "Stop:" in texts
    assert notices(events) == ["safety.answer_calories"]
    await b.begin(session, say("and now?", text="fine", thinking=4))
    events = await everywhere([a, b], session, 2)
    assert events[-1].type == "RUN_FINISHED"


async def test_over_agui_and_in_the_request_itself(site: Site, pair: Pair, as_user: AsUser) -> None:
    a = as_user(pair.a, "carol")
    await a.consent()
    thread = str(uuid4())
    message = {"id": "m1", "role": "user", "content": "I want to kill myself"}
    body = {"threadId": thread, "runId": str(uuid4()), "messages": [message]}
    async with a.raw("POST", "/v1/agui/coach", json=body) as response:
        assert response.status == 200
        over_agui = await take(frames(response))
    verify(over_agui)
    assert notices(over_agui) == ["safety.suicidality"]
    in_request = await take(a.answer(thread, "I passed out at the gym"), ended)
    assert notices(in_request) == ["safety.fainting"]
