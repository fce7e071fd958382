"""Erasure against everything that writes at the same time, and what retention takes and leaves."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db import erasures, leases, ledger, profiles, tombstones
from agent_backend.db import events as log
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database
from agent_backend.errors import Conflict, LeaseLost, MigrationError, NotFound
from agent_backend.turns.machine import Machine
from agent_backend.turns.retention import Housekeeper, Retention
from agent_backend.turns.versions import DeviceTool
from agent_backend.web.stream import CutOff

from ..canaries import canary, plant, rows_of, traces
from ..db.owners import Owner, make_session
from ..db.test_ledger import FAR, held, limits
from ..health_data import quantity, upload
from .conftest import Fleet, kind

LONG = "[[emulator: tokens=400 delay_ms=20]]"
TOOL = DeviceTool(name="read_steps", description="Reads.", input_schema={"type": "object"})


@pytest.fixture
async def owner(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def begin(database: Database, user: UUID) -> erasures.Erasure:
    return await erasures.begin(database, user, account=False)


async def finish(database: Database, receipt: UUID, rows: int = 10_000) -> int:
    """Do what is left and return how many batches it took."""
    batches = 1
    while not (await erasures.step(database, receipt, rows=rows))[1]:
        batches += 1
    return batches


# --- the fence --------------------------------------------------------------------------------------


async def test_what_was_inserted_before_the_tombstone_is_seen_and_what_comes_after_is_refused(
    database: Database, owner: asyncpg.Connection
) -> None:
    user = uuid4()
    async with database.as_user(user) as connection:
        await connection.execute("INSERT INTO profiles VALUES ($1, 'UTC', 'en', NULL)", user)
        beginning = asyncio.create_task(begin(database, user))
        async with asyncio.timeout(10):
            while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        assert not beginning.done(), "it waits for a transaction that has inserted"
    receipt = (await beginning).receipt
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await upload(database, user, quantity("steps", "2026-01-05T10:00", "2026-01-05T10:05", 10))
    assert getattr(refusal.value, "sqlstate", None) == "MH410"
    # What is there is changed once more, and goes.
    await profiles.write(database, user, profiles.ProfilePut(), dt.datetime.now(dt.UTC))
    assert await finish(database, receipt) == 1
    assert await traces(owner, str(user)) == {}
    with pytest.raises(asyncpg.PostgresError):
        await profiles.write(database, user, profiles.ProfilePut(), dt.datetime.now(dt.UTC))


async def test_a_row_that_is_changed_while_it_is_being_deleted_goes_all_the_same(
    database: Database, owner: asyncpg.Connection
) -> None:
    user = uuid4()
    await profiles.write(database, user, profiles.ProfilePut(), dt.datetime.now(dt.UTC))
    receipt = (await begin(database, user)).receipt
    async with database.as_user(user) as connection:
        await connection.execute("UPDATE profiles SET locale = 'de'")
        finishing = asyncio.create_task(finish(database, receipt))
        async with asyncio.timeout(10):
            while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    await finishing
    assert await traces(owner, str(user)) == {}


async def test_an_owner_finds_its_session_gone_and_writes_nothing_back(
    database: Database, owner: asyncpg.Connection
) -> None:
    machine = await Owner(database, "one").register()
    user = uuid4()
    session = await make_session(database, user)
    turn, accepted = await machine.accept(user, session)
    claim = accepted.claim
    assert claim is not None
    await finish(database, (await begin(database, user)).receipt)
    with pytest.raises(LeaseLost):
        await store.settle(database, machine.settlement(claim, 2, 3, final=True))
    segment = log.Segment(session, claim.epoch, 4, 4, b'{"type":"X"}')
    assert await log.append(database, machine.incarnation, [segment]) == set()
    assert (await machine.accept(user, session))[1].status == "not_found"
    begun, _ = await store.start_turn(database, session, machine.incarnation, claim.epoch, turn, 9, b"{}")
    assert not begun
    assert await traces(owner, str(user), str(session)) == {}


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_turn_that_streams_ends_and_leaves_nothing(
    fleet: Fleet, owner: asyncpg.Connection, where: str
) -> None:
    one = await fleet.machine("one")
    two = await fleet.machine("two") if where == "elsewhere" else one
    session = await fleet.session(one, device_tools=[TOOL])
    await fleet.send(one, session, LONG)
    reader = asyncio.create_task(_read_to_the_end(fleet, one, session))
    await _streaming(one, session)
    erased = await two.erase(fleet.user)
    assert erased.completed_at is not None
    assert erased.counts["turns"] == 1
    async with asyncio.timeout(10):
        await reader
        while one.hub.live:
            await asyncio.sleep(0.01)
    assert await traces(owner, str(fleet.user), str(session), "read_steps") == {}


async def test_a_turn_whose_model_is_silent_is_let_go_of_elsewhere(
    fleet: Fleet, owner: asyncpg.Connection
) -> None:
    one, two = await fleet.machine("one"), await fleet.machine("two")
    session = await fleet.session(one)
    await fleet.send(one, session, "[[emulator: ttft_ms=60000]]")
    async with asyncio.timeout(10):
        while not await owner.fetchval(
            "SELECT count(*) > 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        ):
            await asyncio.sleep(0.01)
        await two.erase(fleet.user)
        # Well before the next sweep, and without a word of the model.
        async with asyncio.timeout(4):
            while one.hub.live:
                await asyncio.sleep(0.01)
    assert await traces(owner, str(fleet.user), str(session)) == {}


async def _streaming(machine: Machine, session: UUID) -> None:
    """Wait until deltas are in the log."""
    async with asyncio.timeout(10):
        while not await machine.database.fetchval(
            "SELECT epoch FROM taken_sessions($1, $2, $3) AS epoch", uuid4(), [session], [0]
        ):
            await asyncio.sleep(0.01)
        live = machine.hub.live[session]
        while live.next_n < 8:
            await asyncio.sleep(0.01)


async def _read_to_the_end(fleet: Fleet, machine: Machine, session: UUID) -> None:
    """Follow a session until it is no more; its turn has no end that anybody is told of."""
    with suppress(CutOff, NotFound):
        async for placed in fleet.follow(machine, session):
            assert kind(placed) not in ("RUN_FINISHED", "RUN_ERROR")
        raise AssertionError("the stream ended as if the turn had")


async def test_an_upload_that_runs_at_the_same_time_is_whole_before_or_refused(
    database: Database, owner: asyncpg.Connection
) -> None:
    user = uuid4()
    refused = asyncio.Event()

    async def uploading() -> None:
        for minute in range(10_000):
            try:
                at = f"2026-01-05T{minute // 60 % 24:02}:{minute % 60:02}"
                await upload(database, user, quantity("steps", at, at, minute))
            except asyncpg.PostgresError as error:
                assert getattr(error, "sqlstate", None) == "MH410"  # noqa: PT017
                refused.set()
                return

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(uploading())
        while not await owner.fetchval("SELECT count(*) > 5 FROM myhealth.health_quantities"):
            await asyncio.sleep(0.01)
        await finish(database, (await begin(database, user)).receipt)
    assert refused.is_set()
    assert await traces(owner, str(user)) == {}


# --- interrupted ------------------------------------------------------------------------------------


async def test_an_erasure_that_was_interrupted_is_finished_by_whoever_comes_next(
    fleet: Fleet, database: Database, owner: asyncpg.Connection
) -> None:
    user, neighbour = uuid4(), uuid4()
    await plant(owner, user, rows=50)
    await plant(owner, neighbour)
    before, hers = await rows_of(owner, neighbour), await rows_of(owner, user)
    receipt = (await begin(database, user)).receipt
    for _ in range(5):
        assert not (await erasures.step(database, receipt, rows=7))[1]
    # Whoever did this has died; the time that it had is over.
    await owner.execute("UPDATE myhealth.erasures SET next_at = now()")
    machine = await fleet.machine("next", lease=1.0)
    async with asyncio.timeout(20):
        while await machine.work_left():
            await asyncio.sleep(0.05)
    done = await erasures.read(database, receipt)
    assert done.completed_at is not None, "nobody sleeps before it is finished"
    assert done.user is None
    assert done.counts == {table: len(rows) for table, rows in hers.items()}
    assert await traces(owner, str(user), canary(user)) == {}
    assert await rows_of(owner, neighbour) == before


async def test_after_a_restore_what_has_come_back_is_erased_again(
    database: Database, database_url: str, owner: asyncpg.Connection
) -> None:
    user, neighbour = uuid4(), uuid4()
    receipt = (await begin(database, user)).receipt
    await finish(database, receipt)
    dump = await tombstones.dump(database_url)
    assert str(user) not in dump.decode()
    # Back to a time before the erasure.
    await owner.execute("DELETE FROM myhealth.erasures")
    await plant(owner, user)
    await plant(owner, neighbour)
    before = await rows_of(owner, neighbour)
    assert await tombstones.load(database_url, dump, account=False) == (1, 1)
    assert await tombstones.load(database_url, dump, account=False) == (0, 0)
    await finish(database, receipt)
    assert await traces(owner, str(user), canary(user)) == {}
    assert await rows_of(owner, neighbour) == before


async def test_tombstones_of_another_deployment_are_refused(
    database: Database, database_url: str, owner: asyncpg.Connection
) -> None:
    dump = await tombstones.dump(database_url)
    await owner.execute("UPDATE myhealth.erasure_key SET key = sha256('another')")
    await begin(database, uuid4())
    with pytest.raises(MigrationError, match="another key"):
        await tombstones.load(database_url, dump, account=False)
    with pytest.raises(MigrationError, match="no dump"):
        await tombstones.load(database_url, b"{}", account=False)


# --- versions that clients make ---------------------------------------------------------------------


async def _versions(owner: asyncpg.Connection) -> int:
    return await owner.fetchval(  # pyright: ignore[reportReturnType] - a count is never null
        "SELECT count(*) FROM myhealth.agent_versions WHERE frozen ->> 'device_tools' IS NOT NULL"
    )


async def test_a_put_that_is_refused_leaves_no_version(fleet: Fleet, owner: asyncpg.Connection) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    with pytest.raises(Conflict):
        await machine.commands.put_session(
            fleet.user, session, agent="coach", title=None, device_tools=[TOOL]
        )
    with pytest.raises(NotFound):
        await machine.commands.put_session(uuid4(), session, agent="coach", title=None, device_tools=[TOOL])
    assert await _versions(owner) == 0


async def test_a_version_goes_with_the_last_session_that_refers_to_it(
    fleet: Fleet, database: Database, owner: asyncpg.Connection
) -> None:
    machine = await fleet.machine()
    await fleet.session(machine, device_tools=[TOOL])
    other = uuid4()
    await machine.commands.put_session(other, uuid4(), agent="coach", title=None, device_tools=[TOOL])
    await machine.erase(fleet.user)
    assert await _versions(owner) == 1
    erased = await machine.erase(other)
    assert await _versions(owner) == 0
    assert erased.counts == {"sessions": 1, "agent_versions": 1}


async def test_versions_appear_and_go_side_by_side(fleet: Fleet, owner: asyncpg.Connection) -> None:
    """One user's erasure collects the version that another's session is being made with."""
    machine = await fleet.machine()
    users = [uuid4() for _ in range(30)]

    async def come_and_go(user: UUID) -> None:
        await machine.commands.put_session(user, uuid4(), agent="coach", title=None, device_tools=[TOOL])
        await machine.erase(user)

    async with asyncio.timeout(20):
        await asyncio.gather(*(come_and_go(user) for user in users))
    assert await _versions(owner) == 0
    assert await traces(owner, *(str(user) for user in users)) == {}


# --- retention --------------------------------------------------------------------------------------


def housekeeper(machine: Machine, **keep: float) -> Housekeeper:
    return Housekeeper(
        machine.database, machine._eraser, Retention(**keep), awake=asyncio.Event(), look_seconds=1
    )


async def test_sessions_go_when_nothing_has_happened_in_them_for_long_and_only_then(
    fleet: Fleet, owner: asyncpg.Connection
) -> None:
    machine = await fleet.machine()
    idle, fresh, busy = [await fleet.session(machine, device_tools=[TOOL]) for _ in range(3)]
    for session in (idle, busy):
        text = "[[emulator: tokens=2]]" if session == idle else LONG
        await fleet.send(machine, session, text)
    await fleet.until_end(machine, idle)
    async with asyncio.timeout(10):
        while idle in machine.hub.live:
            await asyncio.sleep(0.01)
    await owner.execute(
        "UPDATE myhealth.sessions SET updated_at = now() - interval '31 days' WHERE id = ANY ($1)",
        [idle, busy],
    )
    await housekeeper(machine, sessions=0).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.sessions") == 3
    await housekeeper(machine, sessions=30).round()
    left = {row[0] for row in await owner.fetch("SELECT id FROM myhealth.sessions")}
    assert left == {fresh, busy}
    assert set(await traces(owner, str(idle))) == {"model_calls"}, "what it cost stays"


async def test_what_calls_cost_goes_when_it_is_old_but_never_of_a_running_month(
    fleet: Fleet, owner: asyncpg.Connection
) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    for _ in range(2):
        await fleet.send(machine, session, "[[emulator: tokens=2]]")
    await fleet.until_end(machine, session, runs=2)
    assert await owner.fetchval("SELECT count(*) FROM myhealth.model_calls WHERE state = 'settled'") == 2
    await owner.execute(
        "UPDATE myhealth.model_calls SET closed_at = now() - interval '401 days', day = day - 401"
        " WHERE id = (SELECT id FROM myhealth.model_calls LIMIT 1)"
    )
    await housekeeper(machine, calls=0).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.model_calls") == 2
    await housekeeper(machine, calls=400).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.model_calls") == 1
    await owner.execute("UPDATE myhealth.model_calls SET closed_at = now() - interval '401 days'")
    await housekeeper(machine, calls=400).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.model_calls") == 1


async def test_old_samples_go_with_the_figures_made_of_them(
    fleet: Fleet, database: Database, owner: asyncpg.Connection
) -> None:
    machine = await fleet.machine()
    users = [uuid4() for _ in range(3)]
    for user in users:
        samples: list[dict[str, Any]] = [
            quantity("steps", f"{day}T10:00", f"{day}T10:05", 10) for day in ("2020-01-05", "2020-02-05")
        ]
        await upload(database, user, *samples)
        await owner.execute(
            "INSERT INTO myhealth.health_quantities"
            " (user_id, id, start_at, end_at, value, source_id, metric_id)"
            " SELECT $1, gen_random_uuid(), now(), now(), 1, source_id, 1 FROM myhealth.health_quantities"
            " WHERE user_id = $1 LIMIT 1",
            user,
        )
    await owner.execute(
        "INSERT INTO myhealth.health_days (user_id, metric_id, day, time_zone, samples, sources)"
        " SELECT $1, 1, d, 'UTC', 1, '{}' FROM unnest(ARRAY['2020-01-05'::date, current_date]) d",
        users[0],
    )
    await housekeeper(machine, health=365).round()
    for user in users:
        rows = (await rows_of(owner, user))["health_quantities"]
        assert [row["value"] for row in rows] == [1]
        assert len((await rows_of(owner, user))["health_sources"]) == 1
    assert len((await rows_of(owner, users[0]))["health_days"]) == 1
    await housekeeper(machine, health=-1).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.health_sources") == 0


async def test_tombstones_and_receipts_have_their_time(fleet: Fleet, owner: asyncpg.Connection) -> None:
    machine = await fleet.machine()
    first = await machine.erase(fleet.user)
    await housekeeper(machine, tombstones=90).round()
    assert (await machine.erase(fleet.user)).receipt == first.receipt
    await owner.execute("UPDATE myhealth.erasures SET completed_at = now() - interval '91 days'")
    await housekeeper(machine, tombstones=90).round()
    assert await owner.fetchval("SELECT user_key FROM myhealth.erasures") is None
    assert (await machine.erase(fleet.user)).receipt != first.receipt
    await owner.execute("UPDATE myhealth.erasures SET completed_at = now() - interval '4 years'")
    await housekeeper(machine, tombstones=90).round()
    assert await owner.fetchval("SELECT count(*) FROM myhealth.erasures") == 0


async def test_an_erasure_charges_its_own_users_open_calls_and_no_others(
    database: Database, owner: asyncpg.Connection
) -> None:
    """The accounts of many users locked in one transaction would deadlock with those users' own calls."""
    gone, stays = uuid4(), uuid4()
    machine = await Owner(database, "one").register()
    for user in (stays, gone):
        holder = await held(machine, user, await make_session(database, user))
        await ledger.reserve(database, holder.ask(uuid4(), limits=limits(**FAR)))
        claim = holder.claim
        await leases.release(database, claim.session_id, machine.incarnation, claim.epoch, 2, force=True)
    begun = await begin(database, gone)
    await finish(database, begun.receipt)
    assert await owner.fetchval("SELECT array_agg(state) FROM myhealth.model_calls") == ["reserved"]
    use = await ledger.tend_global(database)
    assert (use.day_spent, use.day_reserved) == (1000, 1000)
