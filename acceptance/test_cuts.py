"""A connection cut after any event, resumed with its cursor: the same events, once each, byte for byte."""

from __future__ import annotations

import asyncio
import json
from itertools import product
from uuid import uuid4

import pytest

from .client import PATIENCE, TRANSPORTS, Client, Received, Transport, ended, say, take
from .conftest import AsUser, Pair
from .verifier import fold, verify

RICH = say(
    "How many steps?",
    thinking=4,
    tool="get_daily_metrics",
    args={"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"},
    tokens=14,
)
ALL_KINDS = {"REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS", "TOOL_CALL_RESULT", "TEXT_MESSAGE_CONTENT"}


async def test_a_finished_turn_replays_the_same_from_every_cut_over_every_transport_on_both_servers(
    pair: Pair, as_user: AsUser
) -> None:
    owner, other = as_user(pair.a), as_user(pair.b)
    session = await owner.new_session()
    whole = await take(owner.answer(session, RICH))
    verify(whole)
    kinds = {each.type for each in whole}
    assert {
        "REASONING_MESSAGE_CONTENT",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_RESULT",
        "TEXT_MESSAGE_CONTENT",
    } <= kinds
    assert all(each.cursor for each in whole)

    async def resumed(client: Client, transport: Transport, k: int) -> None:
        after = whole[k - 1].cursor if k else None
        assert await take(client.follow(transport, session, after), len(whole) - k) == whole[k:]

    for k in range(len(whole)):
        await asyncio.gather(*(resumed(c, t, k) for c, t in product((owner, other), TRANSPORTS)))
    assert fold(whole) == await owner.messages(session)


@pytest.mark.parametrize(("first", "then"), list(product(TRANSPORTS, TRANSPORTS)))
async def test_cut_again_and_again_while_the_reply_is_being_generated(
    pair: Pair, as_user: AsUser, first: Transport, then: Transport
) -> None:
    """One reader stays; one is cut after every event and comes back over the other transport elsewhere."""
    clients: list[tuple[Client, Transport]] = [(as_user(pair.a), first), (as_user(pair.b), then)]
    session = await clients[0][0].new_session()
    staying = asyncio.create_task(take(clients[0][0].follow(first, session), ended))
    await clients[0][0].begin(session, RICH.replace("]]", " delay_ms=12 ttft_ms=30]]"))
    got: list[Received] = []
    while not ended(got):
        client, transport = clients[len(got) % 2]
        after = got[-1].cursor if got else None
        got += await take(client.follow(transport, session, after), 1)
    assert got == await staying
    verify(got)


async def test_cut_after_k_events_of_a_running_turn_and_resumed_on_the_other_server(
    pair: Pair, as_user: AsUser
) -> None:
    """Turns side by side, one for each k: cut on A after k live events, the rest from B."""
    a, b = as_user(pair.a), as_user(pair.b)

    async def one(k: int) -> None:
        session = await a.new_session()
        # On a busy machine deltas come together: there may be fewer events than k.
        content = RICH.replace("]]", " delay_ms=8]]")
        before = await take(a.answer(session, content), lambda events: len(events) == k or ended(events))
        there = ended(before)
        rest = [] if there else await take(b.follow(TRANSPORTS[k % 2], session, before[-1].cursor), ended)
        whole = await a.log(session)
        assert before + rest == whole
        verify(whole)

    await asyncio.gather(*(one(k) for k in range(1, 26, 3)))


async def test_the_turn_s_own_stream_resumes_with_last_event_id(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, turn = await a.new_session(), str(uuid4())
    await take(a.answer(session, say(tokens=3)))
    whole = await take(a.answer(session, RICH, turn=turn))
    assert whole[0].type == "RUN_STARTED"
    for k in range(0, len(whole) - 1, 4):
        for client in (a, b):
            resumed = client.answer(session, RICH, turn=turn, **{"Last-Event-ID": whole[k].place})
            assert await take(resumed) == whole[k + 1 :]
    # A cursor from before the turn begins at the turn, and one at its end gives nothing more.
    first = (await a.log(session))[0].place
    assert await take(b.answer(session, RICH, turn=turn, **{"Last-Event-ID": first})) == whole
    assert await take(b.answer(session, RICH, turn=turn, **{"Last-Event-ID": whole[-1].place})) == []


async def test_many_sessions_on_one_socket_keep_apart(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    sessions = [await a.new_session() for _ in range(6)]
    got: dict[str, list[Received]] = {session: [] for session in sessions}
    async with asyncio.timeout(PATIENCE), b.socket() as socket:
        for session in sessions:
            await socket.send_json({"type": "subscribe", "session": session})
        for session in sessions:
            await a.begin(session, say(tokens=12, delay_ms=3))
        while not all(ended(events) for events in got.values()):
            text = await socket.receive_str()
            event = json.loads(text)
            if event["type"] != "subscribed":
                session = event["metadata"]["threadId"]
                got[session].append(Received(event["metadata"]["cursor"], text))
    for session, events in got.items():
        assert events == await a.log(session)
