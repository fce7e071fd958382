"""A user's unfinished turns are bounded over all sessions, whoever accepts them at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID, uuid4

import pytest

from agent_backend.db import sessions as store
from agent_backend.db.pool import Database

from .owners import Owner, make_session

MOST = 3


@pytest.fixture
async def one(database: Database) -> Owner:
    return await Owner(database, "one").register()


@pytest.fixture
async def two(database: Database) -> Owner:
    return await Owner(database, "two").register()


async def accept(
    owner: Owner, user: UUID, session: UUID, turn: UUID | None = None, *, live: bool = False
) -> store.Accepted:
    _, accepted = await owner.accept(user, session, turn=turn, live=live, max_user_turns=MOST)
    return accepted


async def test_it_holds_over_all_sessions_and_machines_at_the_same_time(
    database: Database, one: Owner, two: Owner
) -> None:
    user, other = uuid4(), uuid4()
    sessions = [await make_session(database, user) for _ in range(10)]
    theirs = await make_session(database, other)
    got = await asyncio.gather(
        *(accept([one, two][n % 2], user, session) for n, session in enumerate(sessions)),
        accept(one, other, theirs),
    )
    assert Counter(each.status for each in got) == {"created": MOST + 1, "too_many_turns": 7}
    assert got[-1].status == "created"


async def test_a_turn_that_was_taken_is_found_again_and_one_that_ended_leaves_room(
    database: Database, one: Owner
) -> None:
    user = uuid4()
    session, another = await make_session(database, user), await make_session(database, user)
    turns = [uuid4() for _ in range(MOST)]
    taken = [await accept(one, user, session, turn, live=n > 0) for n, turn in enumerate(turns)]
    assert [each.status for each in taken] == ["created"] * MOST
    assert (await accept(one, user, another)).status == "too_many_turns"
    assert (await accept(one, user, session, turns[0], live=True)).status == "same"
    claim = taken[0].claim
    assert claim is not None
    async with database.pool.acquire() as connection:
        await store.settle(connection, one.settlement(claim, 2, 2, final=True))
    assert (await accept(one, user, another)).status == "created"


async def test_the_previous_release_says_no_number_and_is_held_to_none(
    database: Database, one: Owner
) -> None:
    user = uuid4()
    sessions = [await make_session(database, user) for _ in range(MOST + 2)]
    got = [(await one.accept(user, session))[1].status for session in sessions]
    assert got == ["created"] * (MOST + 2)
