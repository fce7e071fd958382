"""Cursors that fell off the log, stand ahead of it or ask for the present; readers that do not read."""

from __future__ import annotations

import asyncio
import socket as sockets
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from . import node
from .client import PATIENCE, TRANSPORTS, Received, Transport, ended, say, seen, take
from .conftest import AsUser, Pair
from .stack import Backend, Site
from .test_cuts import RICH
from .verifier import fold, verify


async def _compact(database: asyncpg.Connection, session: str) -> None:
    """Let a session's log look old, and shrink old logs."""
    await database.execute(
        "UPDATE myhealth.sessions SET updated_at = now() - interval '90 days' WHERE id = $1", session
    )
    await database.execute("SELECT myhealth.compact_logs(now() - interval '30 days', 100)")
    assert (
        await database.fetchval("SELECT count(*) FROM myhealth.segments WHERE session_id = $1", session) == 0
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_compacted_log_is_a_snapshot_with_a_new_cursor(
    pair: Pair, as_user: AsUser, database: asyncpg.Connection, transport: Transport
) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session, turn = await a.new_session(), str(uuid4())
    before = await take(a.answer(session, RICH, turn=turn))
    await _compact(database, session)
    for after in (None, before[0].cursor, before[10].cursor):
        got = await take(b.follow(transport, session, after), 3)
        assert [each.type for each in got] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
        assert [each.cursor for each in got] == [None, None, before[-1].cursor]
        verify(got)
        assert fold(got) == await a.messages(session) == fold(before)
    # Who has seen everything needs nothing, and the turn's own stream ends.
    assert await b.log(session, before[-1].cursor) == []
    again = await take(b.answer(session, RICH, turn=turn))
    assert [each.type for each in again] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    # The log goes on from there.
    await take(a.answer(session, say(tokens=2)))
    rest = await take(b.follow(transport, session, before[-1].cursor), ended)
    assert fold(rest, fold(before)) == await a.messages(session)
    whole = await take(b.follow(transport, session), ended)
    assert fold(whole) == await a.messages(session)
    verify(whole)
    await node.verified_if_there([whole, rest])


async def test_a_failed_and_a_cancelled_turn_end_as_such_after_compaction(
    pair: Pair, as_user: AsUser, database: asyncpg.Connection
) -> None:
    a = as_user(pair.a)
    session, turn = await a.new_session(), str(uuid4())
    await take(a.answer(session, say(tokens=5, fault="truncated;after=2"), turn=turn))
    await _compact(database, session)
    assert [each.type for each in await a.log(session)] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_ERROR"]
    second = await a.begin(session, say(tokens=500, delay_ms=20))
    await take(a.sse(session, second["cursor"]), seen("RUN_STARTED"))
    await a.cancel(session, second["id"])
    await a.finished(session, second["id"])
    await _compact(database, session)
    log = await a.log(session)
    assert [each.type for each in log] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert log[-1].event["outcome"] == {"type": "cancelled"}
    verify(log)


async def test_an_empty_session_has_no_events_and_a_reader_waits_for_the_first(
    pair: Pair, as_user: AsUser
) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session = await a.new_session()
    assert await a.log(session) == await b.log(session) == []
    streams = [c.follow(t, session) for c in (a, b) for t in TRANSPORTS]
    waiting = [asyncio.create_task(take(stream, ended)) for stream in streams]
    # The response begins before there is anything to say.
    async with a.raw("GET", f"/v1/sessions/{session}/events") as response:
        assert response.status == 200
    await a.begin(session, say(tokens=3))
    whole = await asyncio.gather(*waiting)
    assert whole == [await a.log(session)] * 4


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cursor_that_never_was_gets_a_snapshot(
    pair: Pair, as_user: AsUser, transport: Transport
) -> None:
    a = as_user(pair.a)
    session, other = await a.new_session(), await a.new_session()
    whole = await take(a.answer(session, say(tokens=3)))
    await take(a.answer(other, say(tokens=9)))
    foreign = (await a.log(other))[-1].place
    epoch, n = whole[-1].place.split("-")
    for cursor in (f"{int(epoch) + 10**6}-1", f"{epoch}-{int(n) + 1}", "7-7", foreign):
        got = await take(a.follow(transport, session, cursor), 3)
        assert [each.type for each in got] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
        assert got[-1].cursor == whole[-1].cursor
        assert fold(got) == await a.messages(session)


async def test_wait_0_in_the_middle_of_a_turn_ends_at_the_present(pair: Pair, as_user: AsUser) -> None:
    a, b = as_user(pair.a), as_user(pair.b)
    session = await a.new_session()
    turn = await a.begin(session, say(tokens=600, delay_ms=10))
    got: list[Received] = await take(a.sse(session), seen("TEXT_MESSAGE_CONTENT", 2))
    for client in (a, b, a, b):
        got += await client.log(session, got[-1].cursor)
        assert not ended(got)
    await a.cancel(session, turn["id"])
    got += await take(b.sse(session, got[-1].cursor, by_header=True), ended)
    assert got == await a.log(session)


async def test_messages_and_their_cursor_belong_together(pair: Pair, as_user: AsUser) -> None:
    """At any moment: the messages, then the stream from their cursor, make the whole conversation."""
    a, b = as_user(pair.a), as_user(pair.b)
    session = await a.new_session()
    await a.begin(session, RICH.replace("]]", " delay_ms=10]]"))
    reads: list[tuple[list[dict[str, object]], asyncio.Task[list[Received]]]] = []
    async for received in a.sse(session):
        for client in (a, b):
            status, body = await client.call("GET", f"/v1/sessions/{session}/messages")
            assert status == 200
            stream = client.sse(session, body["cursor"])
            reads.append((body["messages"], asyncio.create_task(take(stream, _over))))
        if ended([received]):
            break
    whole = await a.messages(session)
    assert len(reads) > 20
    for messages, rest in reads[:-2]:
        events = [] if messages == whole else await rest
        assert fold(events, messages) == whole
    for _, rest in reads:
        rest.cancel()
    await asyncio.gather(*(rest for _, rest in reads), return_exceptions=True)


def _over(events: list[Received]) -> bool:
    return ended(events)


async def test_a_reader_that_reads_late_has_held_nobody_up_and_missed_nothing(
    site: Site, pair: Pair, as_user: AsUser
) -> None:
    a = as_user(pair.a)
    session = await a.new_session()
    slow = await asyncio.to_thread(_open_unread, site, pair.a, session)
    turn = await a.begin(session, say(thinking=0, tokens=4_000, delay_ms=0.2))
    whole = await take(a.sse(session), ended)
    assert (await a.turn(session, turn["id"]))["state"] == "completed"
    raw = await asyncio.to_thread(_read_all, slow)
    body = raw.partition(b"\r\n\r\n")[2]
    cursors = [line[4:].decode() for line in body.split(b"\n") if line.startswith(b"id: ")]
    assert cursors == [each.cursor for each in whole[: len(cursors)]]
    assert await take(a.sse(session, cursors[-1]), len(whole) - len(cursors)) == whole[len(cursors) :]


def _open_unread(site: Site, backend: Backend, session: str) -> sockets.socket:
    parts = urlsplit(backend.url)
    opened = sockets.socket()
    opened.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    opened.settimeout(PATIENCE)
    opened.connect((parts.hostname or "", parts.port or 0))
    head = f"GET /v1/sessions/{session}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    token = site.headers()["Authorization"]
    opened.sendall(f"{head}Authorization: {token}\r\nConnection: close\r\n\r\n".encode())
    return opened


def _read_all(opened: sockets.socket) -> bytes:
    """Read until the server has nothing more to say."""
    parts: list[bytes] = []
    with opened:
        opened.settimeout(0.5)
        try:
            while part := opened.recv(65_536):
                parts.append(part)
        except TimeoutError:
            pass
    return b"".join(parts)
