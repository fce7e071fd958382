"""The laws of ownership: who may take a session, and that a dead epoch writes nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db import events as log
from agent_backend.db import leases
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database
from agent_backend.errors import LeaseLost
from agent_backend.events import MARKER_SPAN, START, Cursor

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


async def _superuser(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url)


async def test_accepting_claims_and_begins_in_one_call(one: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    claim = accepted.claim
    assert claim is not None
    assert (accepted.status, accepted.state, accepted.started) == ("created", "running", True)
    assert (claim.turn_state, claim.next_n, claim.last_message, claim.attempts) == ("running", 2, 1, 1)
    assert accepted.cursor == Cursor(claim.epoch, 0)


async def test_epochs_follow_the_clock_and_only_grow(one: Owner, user: UUID, session: UUID) -> None:
    _, first = await one.accept(user, session)
    assert first.claim is not None
    assert abs(first.claim.epoch / 1000 - dt.datetime.now(dt.UTC).timestamp()) < 60
    await store.settle(one.database, one.settlement(first.claim, 2, 2, final=True))
    _, second = await one.accept(user, session)
    assert second.claim is not None
    assert second.claim.epoch > first.claim.epoch


async def test_a_living_owner_keeps_its_session(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    await one.accept(user, session)
    _, accepted = await two.accept(user, session)
    assert (accepted.state, accepted.claim, accepted.owner) == ("queued", None, one.incarnation)
    assert await two.claim() == []


async def test_an_owner_that_beats_again_is_not_robbed_by_who_saw_it_dead(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    await one.accept(user, session)
    # Two has watched one standing still, but one has come back since: its expiry is checked again.
    assert await two.claim(dead=[one.incarnation]) == []


async def test_an_expired_owner_is_taken_over_only_by_who_watched_it(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    await one.accept(user, session)
    await one.expire()
    assert await two.claim() == []
    (claim,) = await two.claim(dead=[one.incarnation])
    assert (claim.session_id, claim.turn_state, claim.attempts) == (session, "running", 2)


async def test_an_older_incarnation_of_a_machine_is_taken_over_at_once(
    database: Database, one: Owner, user: UUID, session: UUID
) -> None:
    await one.accept(user, session)
    reborn = await Owner(database, "one").register()
    assert [claim.session_id for claim in await reborn.claim()] == [session]


async def test_a_machine_that_is_not_registered_takes_nothing(
    database: Database, user: UUID, session: UUID
) -> None:
    _, accepted = await Owner(database, "ghost").accept(user, session)
    assert (accepted.state, accepted.claim) == ("queued", None)


async def test_what_this_machine_runs_already_is_not_taken_again(
    one: Owner, user: UUID, session: UUID
) -> None:
    await one.accept(user, session)
    assert await one.claim(live=[session]) == []
    # Forgotten here (its run broke), it is taken anew, with a marker.
    (claim,) = await one.claim(live=[])
    assert claim.next_n == MARKER_SPAN + 1


async def test_a_dead_epoch_settles_nothing(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await one.expire()
    await two.claim(dead=[one.incarnation])
    with pytest.raises(LeaseLost):
        await store.settle(one.database, one.settlement(accepted.claim, 2, 2))
    read = await store.read_messages(one.database, user, session)
    assert read is not None
    assert [message.role for message in read.messages] == ["user"]


async def test_a_dead_epoch_appends_nothing(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await one.expire()
    await two.claim(dead=[one.incarnation])
    late = log.Segment(session, accepted.claim.epoch, 2, 2, b"{}")
    assert await log.append(one.database, one.incarnation, [late]) == set()


async def test_a_dead_epoch_releases_nothing(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await one.expire()
    (claim,) = await two.claim(dead=[one.incarnation])
    await leases.release(one.database, session, one.incarnation, accepted.claim.epoch, 2, force=True)
    page = await log.read(one.database, user, session, START)
    assert page is not None
    assert (page.owner, page.epoch) == (two.incarnation, claim.epoch)


async def _blocked(database_url: str, pid: int) -> bool:
    watcher = await _superuser(database_url)
    try:
        for _ in range(5000):
            if await watcher.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
                return True
            await asyncio.sleep(0.002)
        return False
    finally:
        await watcher.close()


async def test_a_claim_waits_for_an_open_group_commit_of_the_old_epoch(
    database: Database, database_url: str, one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    """A predicate alone does not fence: the open insert could commit after the new owner has read."""
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    await one.expire()
    claiming = await database.connect()
    async with database.pool.acquire() as old, old.transaction():
        kept = await old.fetch(
            "SELECT append_segments($1, $2, $3, $4, $5, $6)",
            one.incarnation, [session], [accepted.claim.epoch], [2], [2], [b"{}"],
        )  # fmt: skip
        assert [row[0] for row in kept] == [session]
        claim = asyncio.create_task(
            claiming.fetch(
                "SELECT * FROM accept_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                user, session, uuid4(), b"h", "m", "[]", None, b"{}", two.incarnation, False,
                [one.incarnation], 5,
            )
        )  # fmt: skip
        assert await _blocked(database_url, claiming.get_server_pid())
    await claim
    page = await log.read(database, user, session, START)
    assert page is not None
    # What the old owner committed is there, and the marker stands behind it.
    kinds = [type(item).__name__ if isinstance(item, log.Marker) else item[0].n for item in page.items]
    assert kinds == [1, 2, "Marker"]
    await claiming.close()


async def test_a_group_commit_does_not_wait_for_a_settle_of_its_session(
    database: Database, one: Owner, user: UUID, session: UUID
) -> None:
    """Settles take FOR NO KEY UPDATE: one slow settle must not hold up all other streams' tokens."""
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    other = await make_session(database, user)
    _, also = await one.accept(user, other)
    assert also.claim is not None
    async with database.pool.acquire() as settling, settling.transaction():
        await store.settle(settling, one.settlement(accepted.claim, 2, 2))
        segments = [
            log.Segment(session, accepted.claim.epoch, 3, 3, b"{}"),
            log.Segment(other, also.claim.epoch, 2, 2, b"{}"),
        ]
        async with asyncio.timeout(3):
            assert await log.append(database, one.incarnation, segments) == {session, other}


async def test_takeover_marks_what_is_settled(one: Owner, two: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    claim = accepted.claim
    assert claim is not None
    await store.settle(one.database, one.settlement(claim, 2, 4))
    await log.append(one.database, one.incarnation, [log.Segment(session, claim.epoch, 5, 6, b"{}\n{}")])
    await one.expire()
    (taken,) = await two.claim(dead=[one.incarnation])
    page = await log.read(one.database, user, session, Cursor(claim.epoch, 6))
    assert page is not None
    assert page.items == [log.Marker(Cursor(taken.epoch, MARKER_SPAN), 2, Cursor(claim.epoch, 4))]
    assert page.settled == Cursor(taken.epoch, MARKER_SPAN)


async def test_a_queued_session_is_taken_over_without_a_marker(
    database: Database, one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    """Nothing was open, so there is nothing to close: a marker would be a snapshot outside any run."""
    ghost = Owner(database, "ghost")
    await ghost.accept(user, session)
    (claim,) = await two.claim()
    assert (claim.turn_state, claim.next_n) == ("queued", 1)


# --- settling -------------------------------------------------------------------------------------


async def test_a_settle_sent_again_changes_nothing_and_answers_the_same(
    one: Owner, user: UUID, session: UUID
) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    step = one.settlement(accepted.claim, 2, 3, messages=2)
    first = await store.settle(one.database, step)
    again = await store.settle(one.database, step)
    assert (first.again, again.again) == (False, True)
    read = await store.read_messages(one.database, user, session)
    assert read is not None
    assert [message.n for message in read.messages] == [1, 2, 3]
    assert read.settled == Cursor(accepted.claim.epoch, 3)


async def test_a_final_settle_sent_again_after_release_still_answers_settled(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    step = one.settlement(accepted.claim, 2, 2, final=True)
    assert (await store.settle(one.database, step)).again is False
    assert (await store.settle(one.database, step)).again is True
    # Even when another machine has gone on since.
    await two.accept(user, session)
    assert (await store.settle(one.database, step)).again is True


async def test_a_segment_sent_again_is_written_once(one: Owner, user: UUID, session: UUID) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    segment = log.Segment(session, accepted.claim.epoch, 2, 3, b"{}\n{}")
    assert await log.append(one.database, one.incarnation, [segment]) == {session}
    assert await log.append(one.database, one.incarnation, [segment]) == {session}
    page = await log.read(one.database, user, session, START)
    assert page is not None
    assert len(page.items) == 2


async def test_the_last_settle_keeps_the_session_for_what_is_queued(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    queued, _ = await two.accept(user, session)
    settled = await store.settle(one.database, one.settlement(accepted.claim, 2, 2, final=True))
    assert settled.next is not None
    assert (settled.next.turn_id, settled.next.turn_state) == (queued, "queued")


async def test_no_wake_up_is_lost_between_last_settle_and_release(
    database: Database, one: Owner, two: Owner, user: UUID
) -> None:
    """However a new turn and the last settle interleave, the turn begins or is handed to the owner."""
    for _ in range(25):
        session = await make_session(database, user)
        _, accepted = await one.accept(user, session)
        assert accepted.claim is not None
        (_, late), settled = await asyncio.gather(
            two.accept(user, session),
            store.settle(database, one.settlement(accepted.claim, 2, 2, final=True)),
        )
        assert (late.claim is not None) != (settled.next is not None)


async def test_a_turn_cannot_skip_states(
    database: Database, database_url: str, one: Owner, user: UUID
) -> None:
    session = await make_session(database, user)
    turn, _ = await one.accept(user, session)
    connection = await _superuser(database_url)
    with pytest.raises(asyncpg.CheckViolationError, match="may not go from running to queued"):
        await connection.execute("UPDATE myhealth.turns SET state = 'queued' WHERE id = $1", turn)
    await connection.close()


async def test_two_turns_of_a_session_never_run_at_once(
    database: Database, database_url: str, one: Owner, user: UUID
) -> None:
    session = await make_session(database, user)
    await one.accept(user, session)
    second, _ = await one.accept(user, session, live=True)
    connection = await _superuser(database_url)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("UPDATE myhealth.turns SET state = 'running' WHERE id = $1", second)
    await connection.close()


# --- accepting ------------------------------------------------------------------------------------


async def test_the_same_turn_again_is_the_same(one: Owner, user: UUID, session: UUID) -> None:
    turn, _ = await one.accept(user, session, on_busy="interrupt")
    _, again = await one.accept(user, session, turn=turn, on_busy="interrupt", live=True)
    assert (again.status, again.state) == ("same", "running")
    row = await store.read_turn(one.database, user, session, turn)
    assert row is not None
    assert row.cancel_requested is False
    _, other = await one.accept(user, session, turn=turn, text="different", live=True)
    assert other.status == "conflict"


async def test_interrupt_stops_every_unfinished_turn_once(one: Owner, user: UUID, session: UUID) -> None:
    running, _ = await one.accept(user, session)
    newer, _ = await one.accept(user, session, on_busy="interrupt", live=True)
    assert await store.requested_cancels(one.database, [session]) == [(session, running)]
    await one.accept(user, session, turn=newer, on_busy="interrupt", live=True)
    row = await store.read_turn(one.database, user, session, newer)
    assert row is not None
    assert row.cancel_requested is False


async def test_reject_and_a_full_queue(one: Owner, user: UUID, session: UUID) -> None:
    await one.accept(user, session)
    _, busy = await one.accept(user, session, on_busy="reject", live=True)
    assert busy.status == "busy"
    for _ in range(4):
        await one.accept(user, session, live=True)
    turn, full = await one.accept(user, session, live=True)
    assert full.status == "queue_full"
    assert await store.read_turn(one.database, user, session, turn) is None


async def test_another_users_session_is_not_there(one: Owner, session: UUID) -> None:
    stranger = uuid4()
    _, accepted = await one.accept(stranger, session)
    assert accepted.status == "not_found"
    assert await log.read(one.database, stranger, session, START) is None
    assert await store.read_messages(one.database, stranger, session) is None
    put = await store.put(
        one.database, stranger, session, agent="coach", version=b"v", title=None, body_hash=b"h"
    )
    assert put is None


async def test_row_level_security_hides_all_rows_without_claims(
    database: Database, one: Owner, user: UUID, session: UUID
) -> None:
    await one.accept(user, session)
    for table in ("sessions", "turns", "messages", "segments"):
        assert await database.fetchval(f"SELECT count(*) FROM {table}") == 0


# --- compaction -----------------------------------------------------------------------------------


async def test_compaction_drops_events_keeps_messages_and_raises_the_floor(
    database: Database, one: Owner, user: UUID, session: UUID
) -> None:
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    assert await log.compact(database, before_days=-1) == 0, "a running turn is left alone"
    await store.settle(database, one.settlement(accepted.claim, 2, 2, final=True))
    assert await log.compact(database, before_days=-1) == 1
    assert await log.compact(database, before_days=-1) == 0
    page = await log.read(database, user, session, START)
    assert page is not None
    assert (page.items, page.floor) == ([], Cursor(accepted.claim.epoch, 2))
    read = await store.read_messages(database, user, session)
    assert read is not None
    assert len(read.messages) == 2


async def test_what_was_accepted_after_the_sweep_looked_is_not_taken(
    one: Owner, user: UUID, session: UUID
) -> None:
    """A sweep that takes its own machine's new turn would cut it in the middle."""
    _, first = await one.accept(user, session)
    assert first.claim is not None
    seen = await leases.claimable(one.database, one.incarnation, [], [], 10)
    assert seen == [(session, first.claim.epoch)]
    await store.settle(one.database, one.settlement(first.claim, 2, 2, final=True))
    _, second = await one.accept(user, session)
    assert second.claim is not None
    assert await leases.claim(one.database, one.incarnation, [], seen) == []
    await store.settle(one.database, one.settlement(second.claim, 2, 2))


async def test_a_handover_on_purpose_costs_no_attempt(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    _, accepted = await one.accept(user, session)
    claim = accepted.claim
    owners = [two, one] * 4
    for owner, following in zip([one, *owners], owners, strict=False):
        assert claim is not None
        await leases.release(
            owner.database, session, owner.incarnation, claim.epoch, claim.next_n, force=True
        )
        (claim,) = await following.claim()
        assert (claim.turn_state, claim.attempts) == ("running", 2)


async def test_a_takeover_without_goodbye_costs_an_attempt(user: UUID, database: Database) -> None:
    session = await make_session(database, user)
    owner = await Owner(database, "m").register()
    _, accepted = await owner.accept(user, session)
    assert accepted.claim is not None
    for attempts in (2, 3, 4):
        owner = await Owner(database, "m").register()
        (claim,) = await owner.claim()
        assert claim.attempts == attempts


async def test_work_left_is_what_no_other_living_machine_does(
    one: Owner, two: Owner, user: UUID, session: UUID
) -> None:
    assert not await leases.work_left(one.database, one.incarnation)
    _, accepted = await one.accept(user, session)
    assert accepted.claim is not None
    assert await leases.work_left(one.database, one.incarnation), "its own"
    assert not await leases.work_left(two.database, two.incarnation), "a living machine's"
    await one.expire()
    assert await leases.work_left(two.database, two.incarnation), "a dead machine's"
    await leases.remove(one.database, one.incarnation, only_if_expired=False)
    assert await leases.work_left(two.database, two.incarnation), "nobody's"
    (claim,) = await two.claim()
    await store.settle(two.database, two.settlement(claim, claim.next_n, claim.next_n, final=True))
    assert not await leases.work_left(two.database, two.incarnation)
