"""Turns that wait for a device or for the user's yes, over processes that die, and over AG-UI."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import asyncpg

from . import node
from .client import PATIENCE, TRANSPORTS, Client, Received, ended, say, seen, take
from .conftest import AsUser, Pair
from .stack import Site
from .verifier import fold, verify

HEART = {
    "name": "read_heart",
    "description": "Reads the heart rate on the phone.",
    "input_schema": {"type": "object", "properties": {"day": {"type": "string"}}},
}
WATER = {
    "name": "log_water",
    "description": "Logs a glass of water.",
    "input_schema": {"type": "object", "properties": {}},
    "effects": True,
}
ASK_HEART = say("My pulse?", thinking=2, tool="read_heart", args={"day": "2026-11-01"}, tokens=4)
PARKED = seen("CUSTOM")


async def session_with_tools(client: Client, agent: str = "coach") -> str:
    return await client.new_session(agent, device_tools=[HEART, WATER])


async def waiting(client: Client, session: str) -> list[dict[str, Any]]:
    status, body = await client.call("GET", f"/v1/sessions/{session}/tool-calls")
    assert status == 200, body
    return body["tool_calls"]


async def answer(client: Client, session: str, call: str, **body: Any) -> int:
    path = f"/v1/sessions/{session}/tool-calls/{call}/result"
    status, _ = await client.call("PUT", path, json={"status": "ok", "content": "62", **body})
    return status


async def parked_turn(client: Client, content: str = ASK_HEART) -> tuple[str, str, dict[str, Any]]:
    """Let a turn come to a call; return session, turn and the call."""
    session = await session_with_tools(client)
    turn = await client.begin(session, content)
    await take(client.sse(session, turn["cursor"]), PARKED)
    [call] = await waiting(client, session)
    return session, turn["id"], call


async def released(database: asyncpg.Connection, session: str) -> None:
    """Wait until nobody owns the session."""
    await _until(database, "SELECT owner IS NULL FROM myhealth.sessions WHERE id = $1", session)


async def _until(database: asyncpg.Connection, query: str, argument: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if await database.fetchval(query, argument):
                return
            await asyncio.sleep(0.01)


async def test_parked_on_a_server_that_dies_and_answered_on_another(
    site: Site, as_user: AsUser, database: asyncpg.Connection
) -> None:
    with site.server() as b:
        other = as_user(b)
        with site.server() as a:
            owner = as_user(a)
            session, turn, call = await parked_turn(owner)
            readers = [asyncio.create_task(take(other.follow(t, session), ended)) for t in TRANSPORTS]
            await released(database, session)
            a.kill()
        assert (await other.turn(session, turn))["state"] == "waiting_device"
        assert call["input"] == {"day": "2026-11-01"}
        assert await answer(other, session, call["id"]) == 200
        whole, over_ws = await asyncio.gather(*readers)
        assert over_ws == whole
        verify(whole)
        kinds = [each.type for each in whole]
        assert kinds.count("RUN_STARTED") == kinds.count("RUN_FINISHED") == 1
        assert kinds.count("TOOL_CALL_RESULT") == kinds.count("CUSTOM") == 1
        assert "MESSAGES_SNAPSHOT" not in kinds, "nothing was taken over: a parked turn has no owner"
        assert (await other.turn(session, turn))["state"] == "completed"
        assert await waiting(other, session) == []
        assert fold(whole) == await other.messages(session)
        await node.verified_if_there([whole])
        assert b.errors() == []


async def test_nobody_there_when_the_call_expires_and_the_next_boot_ends_it(
    site: Site, as_user: AsUser, database: asyncpg.Connection
) -> None:
    with site.server(TOOL_CALL_SECONDS="60") as a:
        session, turn, call = await parked_turn(as_user(a))
        await released(database, session)
        a.kill()
    ends = "SELECT deadline - clock_timestamp() BETWEEN '30 s' AND '60 s' FROM myhealth.turns WHERE id = $1"
    assert await database.fetchval(ends, turn)
    # The minute goes by.
    await database.execute("UPDATE myhealth.turns SET deadline = clock_timestamp() WHERE id = $1", turn)
    with site.server() as b:
        client = as_user(b)
        whole = await take(client.sse(session), ended)
        [result] = [each.event["content"] for each in whole if each.type == "TOOL_CALL_RESULT"]
        assert json.loads(result)["status"] == "timeout"
        assert (await client.turn(session, turn))["state"] == "completed"
        assert await answer(client, session, call["id"]) == 409


async def test_the_first_of_twenty_answers_at_two_servers_wins(pair: Pair, as_user: AsUser) -> None:
    clients = [as_user(pair.a), as_user(pair.b)]
    session, _, call = await parked_turn(clients[0])
    statuses = await asyncio.gather(
        *(answer(clients[n % 2], session, call["id"], content=str(n)) for n in range(20))
    )
    assert sorted(statuses) == [200] + [409] * 19
    winner = str(statuses.index(200))
    whole = await take(clients[1].sse(session), ended)
    assert [each.event["content"] for each in whole if each.type == "TOOL_CALL_RESULT"] == [winner]
    assert await answer(clients[1], session, call["id"], content=winner) == 200


async def test_cut_after_every_event_over_parking(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session = await session_with_tools(a)
    await a.begin(session, ASK_HEART)
    got: list[Received] = []
    while not ended(got):
        client, transport = (a, b)[len(got) % 2], TRANSPORTS[len(got) % 2]
        after = got[-1].cursor if got else None
        got += await take(client.follow(transport, session, after), 1)
        if got[-1].type == "CUSTOM":
            assert await answer(client, session, got[-1].event["value"]["toolCallId"]) == 200
    assert got == await a.log(session)
    verify(got)
    for k in range(len(got)):
        rest = await take(b.follow(TRANSPORTS[k % 2], session, got[k].cursor), len(got) - k - 1)
        assert rest == got[k + 1 :]


async def test_the_stream_of_one_request_goes_on_over_parking(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session = await session_with_tools(a)
    stream = asyncio.create_task(take(a.answer(session, ASK_HEART)))
    await take(b.sse(session), PARKED)
    [call] = await waiting(b, session)
    assert await answer(b, session, call["id"]) == 200
    whole = await stream
    assert whole[-1].type == "RUN_FINISHED"
    verify(whole)


async def test_a_device_claims_and_others_are_refused(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, turn, call = await parked_turn(a, say("Water", tool="log_water", args={}, tokens=2))
    assert call["effects"]
    path = f"/v1/sessions/{session}/tool-calls/{call['id']}/claim"
    assert (await a.call("PUT", path.replace("/claim", "/result"), json={"status": "ok"}))[0] == 409
    assert (await a.call("POST", path, json={"device": "phone"}))[0] == 200
    assert (await b.call("POST", path, json={"device": "phone"}))[0] == 200
    assert (await b.call("POST", path, json={"device": "watch"}))[0] == 409
    assert [each["device"] for each in await waiting(b, session)] == ["phone"]
    assert await answer(b, session, call["id"], device="watch") == 409
    assert await answer(b, session, call["id"], device="phone") == 200
    await take(a.sse(session), ended)
    assert (await a.turn(session, turn))["state"] == "completed"


async def test_another_users_calls_are_not_there(pair: Pair, as_user: AsUser) -> None:
    owner, stranger = as_user(pair.a), as_user(pair.b, "mallory")
    session, _, call = await parked_turn(owner)
    base = f"/v1/sessions/{session}/tool-calls"
    assert (await stranger.call("GET", base))[0] == 404
    assert (await stranger.call("POST", f"{base}/{call['id']}/claim", json={"device": "x"}))[0] == 404
    assert await answer(stranger, session, call["id"]) == 404
    assert await answer(owner, session, "toolu_none") == 404
    [still] = await waiting(owner, session)
    assert still == call
    assert await answer(owner, session, call["id"], status="declined") == 200


async def test_bad_bodies_name_their_field(pair: Pair, as_user: AsUser) -> None:
    client = as_user(pair.a)
    wrong: dict[str, dict[str, Any]] = {
        "$.device_tools[0].name": {**HEART, "name": "no spaces please"},
        "$.device_tools[0].description": {**HEART, "description": ""},
        "$.device_tools[0].input_schema": {**HEART, "input_schema": []},
        "$.device_tools[0].input_schema.type": {**HEART, "input_schema": {"type": "string"}},
        "$.device_tools[0].colour": {**HEART, "colour": "blue"},
        "$.device_tools": {**HEART, "input_schema": {"type": "object", "description": "x" * 40_000}},
    }
    for field, tool in wrong.items():
        body = {"agent": "coach", "device_tools": [tool]}
        status, problem = await client.call("PUT", f"/v1/sessions/{uuid4()}", json=body)
        assert (status, problem["errors"][0]["field"]) == (422, field), problem
    clash = [{**HEART, "name": "get_sleep"}]
    for agent, tools, field in (
        ("coach", clash, "$.device_tools[0].name"),
        ("coach", [HEART, HEART], "$.device_tools[1].name"),
        ("barger", [HEART], "$.device_tools"),
    ):
        body = {"agent": agent, "device_tools": tools}
        status, problem = await client.call("PUT", f"/v1/sessions/{uuid4()}", json=body)
        assert (status, problem["errors"][0]["field"]) == (422, field), problem
    session, _, call = await parked_turn(client)
    path = f"/v1/sessions/{session}/tool-calls/{call['id']}/result"
    for body, field in (
        ({}, "$.status"),
        ({"status": "timeout"}, "$.status"),
        ({"status": "ok", "content": 5}, "$.content"),
        ({"status": "ok", "content": "x\u0000"}, "$.content"),
        ({"status": "ok", "device": ""}, "$.device"),
    ):
        status, problem = await client.call("PUT", path, json=body)
        assert (status, problem["errors"][0]["field"]) == (422, field), problem
    assert await answer(client, session, call["id"]) == 200


async def test_a_session_keeps_the_tools_it_began_with(pair: Pair, as_user: AsUser) -> None:
    client = as_user(pair.a)
    session = await session_with_tools(client)
    path = f"/v1/sessions/{session}"
    same = {"agent": "coach", "device_tools": [HEART, WATER]}
    assert (await client.call("PUT", path, json=same))[0] == 200
    for other in ({"agent": "coach"}, {"agent": "coach", "device_tools": [HEART]}):
        assert (await client.call("PUT", path, json=other))[0] == 409


async def test_a_yes_runs_the_servers_tool(pair: Pair, as_user: AsUser) -> None:
    client = as_user(pair.a)
    session = await client.new_session("careful")
    args = {"start": "2026-11-01", "end": "2026-11-02"}
    turn = await client.begin(session, say(tool="get_sleep", args=args, tokens=2))
    await take(client.sse(session), PARKED)
    [call] = await waiting(client, session)
    assert (call["kind"], call["name"], call["input"]) == ("approval", "get_sleep", args)
    assert (await client.turn(session, turn["id"]))["state"] == "waiting_approval"
    assert await answer(client, session, call["id"], content=None) == 200
    whole = await take(client.sse(session), ended)
    [result] = [each.event["content"] for each in whole if each.type == "TOOL_CALL_RESULT"]
    assert "time_zone" in json.loads(result), "the server's own result"


# --- AG-UI's own request --------------------------------------------------------------------------------


def request(site: Site, url: str, agent: str, content: str, **more: Any) -> dict[str, Any]:
    tool = {"name": HEART["name"], "description": HEART["description"], "parameters": HEART["input_schema"]}
    return {
        "do": "run",
        "url": f"{url}/v1/agui/{agent}",
        "headers": site.headers(),
        "threadId": str(uuid4()),
        "runId": str(uuid4()),
        "content": content,
        "tools": [tool],
        **more,
    }


async def test_http_agent_answers_a_frontend_tool_in_its_next_run(
    site: Site, pair: Pair, as_user: AsUser
) -> None:
    node.require()
    then = [{"runId": str(uuid4()), "answer": "62"}]
    asked = request(site, pair.a.url, "coach", ASK_HEART, then=then)
    async with node.script(asked) as running:
        report = await running.report()
    assert report["error"] is None
    assert [end["type"] for end in report["ends"]] == ["success", "success"]
    [call] = report["ends"][0]["pendingToolCallIds"]
    stored = await as_user(pair.b).messages(asked["threadId"])
    assert [message["role"] for message in stored] == [
        *("user", "reasoning", "assistant", "tool", "reasoning", "assistant")
    ]
    assert (stored[3]["toolCallId"], stored[3]["content"]) == (call, "62")
    assert report["messages"][-1]["content"] == stored[-1]["content"]
    assert report["events"].count("RUN_STARTED") == report["events"].count("RUN_FINISHED") == 2


async def test_what_an_agui_client_says_wrongly_is_named(pair: Pair, as_user: AsUser) -> None:
    client = as_user(pair.a)
    session, _, _ = await parked_turn(client)

    async def post(status: int, field: str | None, agent: str = "coach", **more: Any) -> None:
        body = {"threadId": session, "runId": str(uuid4()), "messages": [], **more}
        got, problem = await client.call("POST", f"/v1/agui/{agent}", json=body)
        assert got == status, problem
        if field is not None:
            assert problem["errors"][0]["field"] == field, problem

    def result(**message: Any) -> list[dict[str, Any]]:
        return [{"id": "r", "role": "tool", **message}]

    user = [{"id": "u", "role": "user", "content": "Hi"}]
    await post(422, "$.messages[0].role")
    await post(422, "$.messages", messages=result(toolCallId="toolu_none", content="x"))
    await post(422, "$.messages[0].toolCallId", messages=result(content="x"))
    await post(422, "$.messages[0].content", messages=result(toolCallId="t", content=5))
    await post(422, "$.messages", resume=[{"interruptId": "t", "status": "resolved"}])
    await post(422, "$.resume[0].status", resume=[{"interruptId": "t", "status": "perhaps"}])
    fresh: dict[str, Any] = {"threadId": str(uuid4()), "messages": user}
    await post(422, "$.tools[0]", **fresh, tools=[{"name": "no spaces", "description": "x"}])
    await post(422, "$.tools[0].name", **fresh, tools=[{"name": "get_sleep", "description": "x"}])
    await post(404, None, messages=result(toolCallId="t", content="x"), threadId=str(uuid4()))
    await post(404, None, "nobody", messages=user)
    [still] = await waiting(client, session)
    assert await answer(client, session, still["id"]) == 200


async def test_http_agent_resumes_an_interrupt(site: Site, pair: Pair, as_user: AsUser) -> None:
    node.require()
    content = say(tool="get_sleep", args={"start": "2026-11-01", "end": "2026-11-02"}, tokens=2)
    for payload, ran in (({"approved": True}, True), ("sure, go on", False)):
        then = [{"runId": str(uuid4()), "resume": payload}]
        asked = request(site, pair.a.url, "careful", content, then=then)
        async with node.script(asked) as running:
            report = await running.report()
        assert report["error"] is None
        assert [end["type"] for end in report["ends"]] == ["interrupt", "success"]
        stored = await as_user(pair.b).messages(asked["threadId"])
        [result] = [message for message in stored if message["role"] == "tool"]
        assert ("error" not in result) is ran
