"""Consents in the database: a history that cannot be rewritten, and a withdrawal that nothing slips past."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db import consents, tool_calls
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database

from .owners import RUN_STARTED, Owner, make_session

HASH = bytes(32)
ONE = '{"a":["1"]}'
BOTH = '{"a":["1","2"],"b":["1"]}'
USER = UUID(int=1)


@pytest.fixture
async def admin(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """Yield a superuser's connection."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def give(database: Database, purpose: str = "a", version: str = "1", user: UUID = USER) -> None:
    await consents.give(database, user, purpose, version=version, text_hash=HASH, locale="de", client="App/1")


async def accept(
    owner: Owner, session: UUID, required: str | None = ONE, turn: UUID | None = None
) -> store.Accepted:
    return await store.accept(
        owner.database,
        user_id=USER,
        session_id=session,
        turn_id=turn or uuid4(),
        body_hash=b"h",
        message_id="m",
        content="[]",
        on_busy="enqueue",
        run_started=RUN_STARTED,
        incarnation=owner.incarnation,
        live=False,
        dead=[],
        max_queue=5,
        consents=required,
    )


async def test_what_is_missing_follows_what_was_given_and_withdrawn(database: Database) -> None:
    assert await consents.missing(database, USER, BOTH) == ["a", "b"]
    await give(database, "b")
    await give(database, "a", version="0")
    await give(database, "a", user=uuid4())
    assert await consents.missing(database, USER, BOTH) == ["a"]
    await give(database, "a", version="2")
    assert await consents.missing(database, USER, BOTH) == []
    assert await consents.missing(database, USER, ONE) == ["a"], "this server does not know version 2"
    await give(database, "a", version="1")
    assert await consents.withdraw(database, USER, "a", ends_turns=True) == []
    assert await consents.missing(database, USER, BOTH) == ["a"], "all versions are withdrawn at once"
    assert await consents.missing(database, USER, "{}") == []


async def test_the_same_again_adds_nothing_and_the_last_word_is_read(
    database: Database, admin: asyncpg.Connection
) -> None:
    await asyncio.gather(*(give(database) for _ in range(6)))
    [row] = await consents.read(database, USER)
    assert (row.purpose, row.version, row.text_hash, row.locale) == ("a", "1", HASH, "de")
    assert row.withdrawn_at is None
    for _ in range(2):
        await consents.withdraw(database, USER, "a", ends_turns=True)
    withdrawn = await consents.read(database, USER)
    assert withdrawn == [row._replace(withdrawn_at=withdrawn[0].withdrawn_at)]
    await give(database)
    [again] = await consents.read(database, USER)
    assert again.withdrawn_at is None
    assert again.given_at > row.given_at
    assert await admin.fetchval("SELECT count(*) FROM myhealth.consents") == 2
    assert await consents.read(database, uuid4()) == []


async def test_history_is_not_rewritten(database: Database, admin: asyncpg.Connection) -> None:
    await give(database)
    await give(database, "b")
    await consents.withdraw(database, USER, "a", ends_turns=True)
    for change in (
        "version = '2'",
        "given_at = now()",
        "withdrawn_at = NULL",
        "withdrawn_at = now()",
        "withdrawn_at = now(), locale = 'en'",
    ):
        with pytest.raises(asyncpg.CheckViolationError, match="withdrawn once"):
            await admin.execute(f"UPDATE myhealth.consents SET {change}")
    for statement in (
        "UPDATE consents SET withdrawn_at = now()",
        "DELETE FROM consents",
        "INSERT INTO consents (user_id, purpose) VALUES (gen_random_uuid(), 'c')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.fetchval(statement)


async def test_a_user_sees_their_own_rows_alone(database: Database) -> None:
    await give(database)
    for user, count in ((USER, 1), (uuid4(), 0)):
        async with database.as_user(user) as connection:
            assert await connection.fetchval("SELECT count(*) FROM consents") == count
    assert await database.fetchval("SELECT count(*) FROM consents") == 0


async def test_a_turn_is_accepted_with_what_it_needs_and_found_again_without(
    database: Database, admin: asyncpg.Connection
) -> None:
    owner = await Owner(database, "one").register()
    session, turn = await make_session(database, USER), uuid4()
    refused = await accept(owner, session, BOTH)
    assert (refused.status, refused.missing, refused.state) == ("consent_required", ["a", "b"], None)
    assert await admin.fetchval("SELECT count(*) FROM myhealth.turns") == 0
    assert (await accept(owner, uuid4())).status == "not_found"
    await give(database)
    accepted = await accept(owner, session, turn=turn)
    assert (accepted.status, accepted.missing) == ("created", [])
    await consents.withdraw(database, USER, "a", ends_turns=True)
    assert (await accept(owner, session, turn=turn)).status == "same"
    assert (await accept(owner, session)).status == "consent_required"


async def test_a_release_that_does_not_know_of_consents_is_not_held_up(database: Database) -> None:
    owner = await Owner(database, "one").register()
    session = await make_session(database, USER)
    before = (
        "SELECT r.status, (r.claim).session_id FROM accept_turn("
        "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) r"
    )
    row = await database.fetchrow(
        before,
        USER,
        session,
        uuid4(),
        b"h",
        "m",
        "[]",
        "enqueue",
        RUN_STARTED,
        owner.incarnation,
        False,
        [],
        5,
    )
    assert row is not None
    assert tuple(row) == ("created", session)
    answer = "SELECT r.status, r.woken FROM put_tool_result($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) r"
    row = await database.fetchrow(
        answer, USER, session, "call", "ok", None, b"h", None, owner.incarnation, False, []
    )
    assert row is not None
    assert tuple(row) == ("not_found", False)


async def parked(owner: Owner, session: UUID) -> UUID:
    """Make a turn that waits for a device."""
    accepted = await accept(owner, session)
    assert accepted.claim is not None
    assert accepted.claim.turn_id is not None
    await tool_calls.park(
        owner.database,
        tool_calls.Parking(
            session,
            owner.incarnation,
            accepted.claim.epoch,
            accepted.claim.turn_id,
            accepted.claim.next_n,
            accepted.claim.next_n,
            b'{"type":"X"}',
            "waiting_device",
            60.0,
            [tool_calls.ParkedCall("call", "read_heart", "device", False, "{}")],
        ),
    )
    return accepted.claim.turn_id


async def answer(owner: Owner, session: UUID, content: str = "62") -> tool_calls.Answered:
    return await tool_calls.answer(
        owner.database,
        user_id=USER,
        session_id=session,
        call_id="call",
        status="ok",
        content=content,
        body_hash=content.encode(),
        device=None,
        incarnation=owner.incarnation,
        live=False,
        dead=[],
        consents=ONE,
    )


async def test_withdrawing_stops_what_waits_runs_and_is_parked_and_nobody_elses(
    database: Database, admin: asyncpg.Connection
) -> None:
    owner = await Owner(database, "one").register()
    await give(database)
    await give(database, "b")
    running, waits, done = [await make_session(database, USER) for _ in range(3)]
    stranger = await make_session(database, UUID(int=2))
    await owner.accept(UUID(int=2), stranger)
    await accept(owner, running)
    queued = uuid4()
    await accept(owner, running, turn=queued)
    turn = await parked(owner, waits)
    finished = await accept(owner, done)
    assert finished.claim is not None
    await store.settle(database, owner.settlement(finished.claim, 2, 2, final=True))
    assert await consents.withdraw(database, USER, "b", ends_turns=False) == []
    assert not await consents.stopping_turns(database, USER)
    stopped = await consents.withdraw(database, USER, "a", ends_turns=True)
    assert sorted(stopped) == sorted([running, waits])
    assert sorted(await consents.withdraw(database, USER, "a", ends_turns=True)) == sorted(stopped)
    asked = await admin.fetch("SELECT session_id, cancel_requested FROM myhealth.turns ORDER BY 1")
    assert all(row["cancel_requested"] == (row["session_id"] in stopped) for row in asked)
    assert await consents.stopping_turns(database, USER)
    assert not await consents.stopping_turns(database, UUID(int=2))
    [call] = await tool_calls.read(database, USER, waits, turn)
    assert (call.state, call.status, call.content) == (
        "answered",
        "declined",
        "The user has withdrawn their consent.",
    )
    late = await answer(owner, waits)
    assert (late.status, late.missing, late.woken) == ("consent_required", ["a"], False)
    [claim] = [each for each in await owner.claim(live=[running]) if each.session_id == waits]
    assert (claim.turn_id, claim.turn_state, claim.cancel_requested) == (turn, "running", True)


async def test_an_answer_counts_while_the_consent_is_there(database: Database) -> None:
    owner = await Owner(database, "one").register()
    await give(database)
    session = await make_session(database, USER)
    await parked(owner, session)
    answered = await answer(owner, session)
    assert (answered.status, answered.woken) == ("answered", True)
    await consents.withdraw(database, USER, "a", ends_turns=True)
    assert (await answer(owner, session)).status == "same", "the same again is harmless"
    assert (await answer(owner, session, "63")).status == "consent_required"


async def test_whoever_accepts_beside_a_withdrawal_is_refused_or_stopped(
    database: Database, admin: asyncpg.Connection
) -> None:
    """The law of the user's lock, however the two interleave."""
    owner = await Owner(database, "one").register()
    rng = random.Random(1)
    seen: set[str] = set()
    for _ in range(20):
        await give(database)
        sessions = [await make_session(database, USER) for _ in range(3)]

        async def later(session: UUID) -> store.Accepted:
            await asyncio.sleep(rng.random() * 0.002)
            return await accept(owner, session)

        async def withdraw() -> list[UUID]:
            await asyncio.sleep(rng.random() * 0.002)
            return await consents.withdraw(database, USER, "a", ends_turns=True)

        *accepted, stopped = await asyncio.gather(*(later(each) for each in sessions), withdraw())
        for session, each in zip(sessions, accepted, strict=True):
            assert isinstance(each, store.Accepted)
            seen.add(each.status)
            assert (each.status == "created") == (session in stopped)
        going_on = "SELECT count(*) FROM myhealth.turns WHERE NOT cancel_requested"
        assert await admin.fetchval(going_on) == 0
    assert seen == {"created", "consent_required"}
