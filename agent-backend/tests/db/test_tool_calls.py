"""The laws of waiting: a parked turn has no owner, is answered once, and goes on when it is due."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db import events as log
from agent_backend.db import leases, tool_calls
from agent_backend.db import sessions as store
from agent_backend.db.leases import Claim
from agent_backend.db.pool import Database
from agent_backend.db.tool_calls import ParkedCall, Parking, WaitingState
from agent_backend.errors import LeaseLost
from agent_backend.events import START, Cursor

from .owners import Owner, make_session


@pytest.fixture
def user() -> UUID:
    return uuid4()


@pytest.fixture
async def session(database: Database, user: UUID) -> UUID:
    return await make_session(database, user)


@pytest.fixture
async def one(database: Database) -> Owner:
    return await Owner(database, "one").register()


@pytest.fixture
async def two(database: Database) -> Owner:
    return await Owner(database, "two").register()


def parking(
    owner: Owner, claim: Claim, *, seconds: float = 60, state: WaitingState = "waiting_device", calls: int = 1
) -> Parking:
    assert claim.turn_id is not None
    return Parking(
        session_id=claim.session_id,
        incarnation=owner.incarnation,
        epoch=claim.epoch,
        turn_id=claim.turn_id,
        first=claim.next_n,
        last=claim.next_n,
        events=b'{"type":"X"}',
        state=state,
        timeout=seconds,
        calls=[ParkedCall(f"call{n}", "read", "device", effects=False, input="{}") for n in range(calls)],
    )


async def parked(
    owner: Owner, user: UUID, session: UUID, *, seconds: float = 60, calls: int = 1
) -> tuple[Claim, Parking]:
    """Accept a turn and park it."""
    _, accepted = await owner.accept(user, session)
    assert accepted.claim is not None
    step = parking(owner, accepted.claim, seconds=seconds, calls=calls)
    assert await tool_calls.park(owner.database, step)
    return accepted.claim, step


async def answer(
    owner: Owner, user: UUID, session: UUID, call: str = "call0", content: str = "62", *, live: bool = False
) -> tool_calls.Answered:
    return await tool_calls.answer(
        owner.database,
        user_id=user,
        session_id=session,
        call_id=call,
        status="ok",
        content=content,
        body_hash=content.encode(),
        device=None,
        incarnation=owner.incarnation,
        live=live,
        dead=[],
    )


async def state_of(owner: Owner, user: UUID, session: UUID, turn: UUID | None) -> str:
    assert turn is not None
    row = await store.read_turn(owner.database, user, session, turn)
    assert row is not None
    return row.state


async def test_parking_gives_the_session_back_in_the_same_call(one: Owner, user: UUID, session: UUID) -> None:
    claim, step = await parked(one, user, session)
    page = await log.read(one.database, user, session, START)
    assert page is not None
    assert page.owner is None
    assert page.settled == Cursor(step.epoch, step.last)
    assert await state_of(one, user, session, claim.turn_id) == "waiting_device"
    [call] = await tool_calls.read(one.database, user, session)
    assert (call.id, call.state, call.parked) == ("call0", "pending", page.settled)


async def test_a_dead_epoch_parks_nothing(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await one.expire()
    await two.claim(dead=[one.incarnation])
    with pytest.raises(LeaseLost):
        await tool_calls.park(one.database, parking(one, accepted.claim))
    assert await tool_calls.read(one.database, user, session) == []


async def test_a_turn_asked_to_stop_parks_nothing(one: Owner, user: UUID, session: UUID) -> None:
    """Else the request, made between the last settle and the parking, would wait for the call to expire."""
    turn, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await store.cancel(
        one.database,
        user_id=user,
        session_id=session,
        turn_id=turn,
        incarnation=one.incarnation,
        live=True,
        dead=[],
    )
    assert not await tool_calls.park(one.database, parking(one, accepted.claim))
    assert await tool_calls.read(one.database, user, session) == []
    assert await state_of(one, user, session, turn) == "running"
    # Its position is free for what the turn settles instead.
    settled = await store.settle(one.database, one.settlement(accepted.claim, 2, 2))
    assert settled.cancel


async def test_parking_sent_again_changes_nothing(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, step = await parked(one, user, session)
    assert await tool_calls.park(one.database, step)
    assert (await answer(two, user, session)).claim is not None
    # Also after somebody has woken it: the first attempt's answer may be very late.
    assert await tool_calls.park(one.database, step)
    assert len(await tool_calls.read(one.database, user, session, step.turn_id)) == 1


async def test_the_last_answer_wakes_the_turn_without_a_marker(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    first, _ = await parked(one, user, session, calls=2)
    half = await answer(two, user, session, "call1")
    assert (half.status, half.woken, half.claim) == ("answered", False, None)
    assert await two.claim() == [], "the other call is still waited for"
    whole = await answer(two, user, session, "call0")
    assert (whole.status, whole.woken) == ("answered", True)
    assert whole.claim is not None
    assert (whole.claim.turn_id, whole.claim.turn_state) == (first.turn_id, "running")
    assert whole.claim.next_n == 1, "no marker: parking was a clean end"
    assert whole.claim.last_message == first.last_message, "the user's message is not written again"


async def test_an_answer_through_a_machine_that_is_not_registered_is_found_by_the_sweep(
    database: Database, one: Owner, user: UUID, session: UUID
) -> None:
    await parked(one, user, session)
    ghost = Owner(database, "ghost")
    given = await answer(ghost, user, session)
    assert (given.status, given.woken, given.claim) == ("answered", True, None)
    [claim] = await one.claim()
    assert claim.turn_state == "running"


async def test_a_parked_turn_is_no_work_until_it_is_due(one: Owner, user: UUID, session: UUID) -> None:
    await parked(one, user, session)
    assert await leases.claimable(one.database, one.incarnation, [], [], 10) == []


async def test_an_overdue_turn_is_taken_by_one_sweep_and_its_calls_expire(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    _, step = await parked(one, user, session, seconds=-1, calls=2)
    assert (await answer(one, user, session, "call1")).status == "answered", "nobody has swept yet"
    claims = [each for part in await asyncio.gather(one.claim(), two.claim()) for each in part]
    assert [claim.turn_state for claim in claims] == ["running"]
    rows = await tool_calls.read(one.database, user, session, step.turn_id)
    assert {row.id: row.status for row in rows} == {"call0": "timeout", "call1": "ok"}
    assert (await answer(one, user, session, "call0")).status == "expired"
    assert (await answer(one, user, session, "call1")).status == "same"
    assert (await answer(one, user, session, "call1", "63")).status == "conflict"


async def test_commands_that_change_nothing_leave_a_parked_turn_without_an_owner(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    claim, _ = await parked(one, user, session)
    _, again = await two.accept(user, session, turn=claim.turn_id)
    assert (again.status, again.state, again.claim) == ("same", "waiting_device", None)
    _, busy = await two.accept(user, session, on_busy="reject")
    assert (busy.status, busy.claim) == ("busy", None)
    page = await log.read(one.database, user, session, START)
    assert page is not None
    assert page.owner is None
    assert page.epoch > claim.epoch


async def test_a_new_message_and_a_cancel_wake_a_parked_turn(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    first, step = await parked(one, user, session)
    _, accepted = await two.accept(user, session)
    assert (accepted.state, accepted.started) == ("queued", False)
    assert accepted.claim is not None
    assert (accepted.claim.turn_id, accepted.claim.turn_state) == (first.turn_id, "running")
    [row] = await tool_calls.read(one.database, user, session, step.turn_id)
    assert (row.state, row.status) == ("answered", "unavailable")
    other = await make_session(one.database, user)
    claim, _ = await parked(one, user, other)
    assert claim.turn_id is not None
    cancelled = await store.cancel(
        one.database,
        user_id=user,
        session_id=other,
        turn_id=claim.turn_id,
        incarnation=two.incarnation,
        live=False,
        dead=[],
    )
    assert (cancelled.status, cancelled.state) == ("requested", "waiting_device")
    assert cancelled.claim is not None
    assert cancelled.claim.cancel_requested


async def test_a_woken_turn_whose_owner_dies_is_taken_over_with_a_marker(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    _, step = await parked(one, user, session)
    await answer(one, user, session)
    await one.expire()
    [claim] = await two.claim(dead=[one.incarnation])
    assert claim.next_n > 1
    [row] = await tool_calls.read(two.database, user, session, step.turn_id)
    assert row.content == "62"


async def test_rows_are_hidden_from_others_and_without_claims(
    one: Owner, user: UUID, session: UUID, database: Database
) -> None:
    _, step = await parked(one, user, session)
    assert await database.fetch("SELECT * FROM tool_calls") == []
    stranger = uuid4()
    assert await tool_calls.read(database, stranger, session, step.turn_id) == []
    assert await tool_calls.read(database, stranger, session, ids=["call0"]) == []
    assert (await answer(one, stranger, session)).status == "not_found"
    assert await tool_calls.claim_call(database, stranger, session, "call0", "d") == "not_found"
    for statement in ("UPDATE tool_calls SET status = 'ok'", "DELETE FROM tool_calls"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.fetch(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.fetch("SELECT unpark($1)", session)


async def test_what_ends_with_its_session(one: Owner, user: UUID, session: UUID, database_url: str) -> None:
    await parked(one, user, session)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("DELETE FROM myhealth.sessions WHERE id = $1", session)
        assert await connection.fetchval("SELECT count(*) FROM myhealth.tool_calls") == 0
    finally:
        await connection.close()
