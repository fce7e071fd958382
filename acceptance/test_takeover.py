"""An owner that dies or freezes in the middle of a reply, as readers see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import product
from uuid import uuid4

from . import node
from .client import PATIENCE, TRANSPORTS, Client, Received, Until, ended, ends, say, take
from .conftest import AsUser
from .stack import Site
from .verifier import fold, verify

LEASE = {"LEASE_SECONDS": "2"}
UNCOMMITTED = {**LEASE, "GROUP_COMMIT_MS": "2000"}
STEPS_ARGS = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}
TOOL = {"thinking": 0, "tool": "get_daily_metrics", "args": STEPS_ARGS, "tokens": 9}
# The first answer hangs after some deltas, so that it is certain where the owner dies; the next one does not.
HANGING: dict[str, tuple[str, int, dict[str, object]]] = {
    "in mid-thinking": (
        "REASONING_MESSAGE_CONTENT",
        5,
        {"thinking": 9, "tokens": 4, "fault": "stall;after=5"},
    ),
    "in mid-tool-call": ("TOOL_CALL_ARGS", 1, {**TOOL, "fault": "stall;after=2"}),
    "in mid-text": ("TEXT_MESSAGE_CONTENT", 6, {"thinking": 2, "tokens": 12, "fault": "stall;after=8"}),
    "after a tool": ("TEXT_MESSAGE_CONTENT", 3, {**TOOL, "fault": "stall;after=3", "fault_step": 2}),
}


def hanging(case: str) -> tuple[str, Until]:
    """Return a message whose first answer hangs, and the condition that it does.

    Words are counted, not events: under load deltas come together.
    """
    kind, words, directive = HANGING[case]

    def hangs(events: list[Received]) -> bool:
        text = "".join(each.event["delta"] for each in events if each.type == kind)
        return len(text.split()) >= words

    return say(case, id=uuid4().hex, fault_times=1, **directive), hangs


async def test_readers_elsewhere_see_the_open_closed_and_the_turn_completed(
    site: Site, as_user: AsUser
) -> None:
    """For each place to die in: one reader by SSE, one by WebSocket, and a turn that waits in the queue."""
    with site.server(**LEASE) as a, site.server(**LEASE) as b:
        owner, other = as_user(a), as_user(b)
        sessions: dict[str, str] = {}
        readers: dict[str, list[asyncio.Task[list[Received]]]] = {}
        for case in HANGING:
            content, hangs = hanging(case)
            session = sessions[case] = await owner.new_session()
            await owner.begin(session, content)
            await take(other.sse(session), hangs)
            readers[case] = [
                asyncio.create_task(take(other.follow(transport, session), ends(2)))
                for transport in TRANSPORTS
            ]
            await owner.begin(session, say(tokens=2))
        a.kill()
        streams: list[list[Received]] = []
        for case, (over_sse, over_ws) in readers.items():
            whole = await over_sse
            assert await over_ws == whole
            streams.append(whole)
            _check(case, whole)
            await _replays_from_everywhere(other, sessions[case], whole)
            assert fold(whole) == await other.messages(sessions[case])
        await node.verified_if_there(streams)
        assert b.errors() == []


def _check(case: str, whole: list[Received]) -> None:
    verify(whole)
    kinds = [each.type for each in whole]
    assert kinds.count("MESSAGES_SNAPSHOT") == 1, case
    assert kinds.count("RUN_STARTED") == kinds.count("RUN_FINISHED") == 2
    assert kinds.count("TOOL_CALL_RESULT") == (1 if HANGING[case][2].get("tool") else 0)
    at = kinds.index("MESSAGES_SNAPSHOT")
    assert kinds[at - 1].endswith("_END"), "what was open is closed before the snapshot"
    # What was not settled is not in the snapshot, and is said anew.
    shown = {m["id"] for m in whole[at].event["messages"] if m["role"] != "user"}
    began = [each.event["messageId"] for each in whole[:at] if each.type == "TEXT_MESSAGE_START"]
    assert not shown & set(began)
    assert "TEXT_MESSAGE_CONTENT" in kinds[at:]


async def _replays_from_everywhere(client: Client, session: str, whole: list[Received]) -> None:
    async def one(k: int) -> None:
        transport = TRANSPORTS[k % 2]
        got = await take(client.follow(transport, session, whole[k].cursor), len(whole) - k - 1)
        assert got == whole[k + 1 :]

    await asyncio.gather(*(one(k) for k in range(len(whole))))


async def test_who_saw_what_was_never_persisted_gets_the_conversation_anew(
    site: Site, as_user: AsUser
) -> None:
    with site.server(**UNCOMMITTED) as a, site.server(**LEASE) as b:
        owner, other = as_user(a), as_user(b)
        streams = await asyncio.gather(*(_until_it_hangs(owner, case) for case in HANGING))
        before = dict(streams)
        a.kill()
        reading = {
            (session, transport): take(other.follow(transport, session, seen[-1].cursor), ended)
            for (session, seen), transport in product(before.items(), TRANSPORTS)
        }
        answers = dict(zip(reading, await asyncio.gather(*reading.values()), strict=True))
        for (session, _), after in answers.items():
            assert [each.type for each in after[:2]] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
            assert after[0].cursor is None, "who is cut between the two gets both again"
            assert after[-1].type == "RUN_FINISHED"
            verify(after)
            assert (await other.log(session))[-len(after[2:]) :] == after[2:]
            held = fold(after, fold(before[session]))
            assert held == await other.messages(session)
            # Nothing of the text that was lost is left, and nothing is there twice.
            assert len({message["id"] for message in held}) == len(held)
        await node.verified_if_there(list(answers.values()))
        assert b.errors() == []


async def _until_it_hangs(owner: Client, case: str) -> tuple[str, list[Received]]:
    content, hangs = hanging(case)
    session = await owner.new_session()
    before = await take(owner.answer(session, say("First", tokens=2)))
    turn = await owner.begin(session, content)
    return session, before + await take(owner.sse(session, turn["cursor"]), hangs)


async def test_the_reader_of_an_owner_that_froze_is_cut_and_goes_on_elsewhere(
    site: Site, as_user: AsUser
) -> None:
    with site.server(**LEASE) as a, site.server(**LEASE) as b:
        owner, other = as_user(a), as_user(b)
        session = await owner.new_session()
        content, hangs = hanging("in mid-text")
        await owner.begin(session, content)
        # Persisted and silent: nothing the frozen owner does makes it notice.
        await take(other.sse(session), hangs)
        loyal = [owner.follow(transport, session) for transport in TRANSPORTS]
        begun = [await take_some(stream, hangs) for stream in loyal]
        a.freeze()
        whole = await take(other.sse(session), ended)
        a.thaw()
        for stream, first in zip(loyal, begun, strict=True):
            got = first + await to_the_end(stream)
            assert got == whole[: len(got)]
            rest = await take(owner.sse(session, got[-1].cursor), ended) if not ended(got) else []
            assert got + rest == whole
        verify(whole)


async def take_some(stream: AsyncGenerator[Received], until: Until) -> list[Received]:
    """Collect events up to a condition and leave the stream open."""
    events: list[Received] = []
    async with asyncio.timeout(PATIENCE):
        while not until(events):
            events.append(await anext(stream))
    return events


async def to_the_end(stream: AsyncGenerator[Received]) -> list[Received]:
    """Collect events until the server ends the stream, or the run does."""
    events: list[Received] = []
    async with asyncio.timeout(PATIENCE), aclosing(stream):
        async for received in stream:
            events.append(received)
            if ended(events):
                break
    return events


async def test_a_server_that_is_stopped_hands_its_turns_over(site: Site, as_user: AsUser) -> None:
    with site.server(**LEASE) as a, site.server(**LEASE) as b:
        owner, other = as_user(a), as_user(b)
        sessions = {case: await owner.new_session() for case in HANGING}
        for case, session in sessions.items():
            content, hangs = hanging(case)
            await owner.begin(session, content)
            await take(owner.sse(session), hangs)
        following = [asyncio.create_task(take(owner.sse(s))) for s in sessions.values()]
        for session in sessions.values():
            await take(owner.sse(session), 1)
        assert await asyncio.to_thread(a.terminate) == 0
        for session, stream in zip(sessions.values(), following, strict=True):
            before = await stream
            after = await take(other.sse(session, before[-1].cursor), ended)
            verify(after, inside_run=after[0].type != "RUN_STARTED")
            assert fold(after, fold(before)) == await other.messages(session)
            assert after[-1].type == "RUN_FINISHED"
        assert a.errors() == b.errors() == []
