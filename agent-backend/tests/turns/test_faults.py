"""Faults that come in a bad order: the database goes in mid-statement, requests race with the sweep."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db import events as log
from agent_backend.db import sessions as store
from agent_backend.db.events import Marker, compact
from agent_backend.db.pool import Database
from agent_backend.events import START, Cursor
from agent_backend.turns.machine import Machine
from agent_backend.web.stream import CutOff, Follower, Placed

from .conftest import Fleet, kind
from .test_laws import held_up, superuser, wait_until

_BACKENDS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'agent-backend'"


@asynccontextmanager
async def login(fleet: Fleet, database_url: str) -> AsyncGenerator[str]:
    """Let the fleet's machines connect as a role of their own, which can be locked out."""
    name = f"login_{uuid4().hex}"
    async with superuser(database_url) as other:
        await other.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' IN ROLE agent_backend")
        host = database_url.partition("@")[2]
        fleet._database_url = f"postgresql://{name}:{name}@{host}"
        try:
            yield name
        finally:
            await other.execute(f"ALTER ROLE {name} LOGIN CONNECTION LIMIT -1")


def cut(machine: Machine) -> None:
    """End the machine's side of its connections; what runs in Postgres goes on to its end."""
    for holder in machine.database.pool._holders:
        if holder._con is not None:
            holder._con.terminate()


STATEMENTS = pytest.mark.parametrize("statement", ["append_segments", "settle"])


async def test_a_reader_outlives_the_connection_it_reads_over(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, "[[emulator: tokens=5]]")
    whole = await fleet.until_end(machine, session)
    async with superuser(database_url) as other:
        async with other.transaction():
            # The read waits inside Postgres for as long as this is held.
            await other.execute("LOCK TABLE myhealth.segments IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.create_task(fleet.until_end(machine, session))
            blocked = "SELECT pid FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            await wait_until(lambda: _there(other, blocked))
            await other.execute(f"SELECT pg_terminate_backend(pid) FROM ({blocked}) AS them")
            await wait_until(lambda: _gone(other, blocked))
        async with asyncio.timeout(10):
            assert await reading == whole


async def _there(other: asyncpg.Connection, query: str) -> bool:
    return await other.fetchval(query) is not None


async def _gone(other: asyncpg.Connection, query: str) -> bool:
    return await other.fetchval(query) is None


@STATEMENTS
async def test_a_database_that_takes_no_connections_yet_is_waited_for(
    fleet: Fleet, database_url: str, statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restart of Postgres cuts what runs and then refuses for a while: no refusal of what was asked."""
    async with login(fleet, database_url) as role, superuser(database_url) as other:
        machine = await fleet.machine(commit=0.005 if statement == "append_segments" else 30.0)
        session, gate = await fleet.session(machine), fleet.gate()
        reading = asyncio.ensure_future(fleet.until_end(machine, session))
        await fleet.send(machine, session, f"[[emulator: tokens=20 delay_ms=5 {gate}]]")
        async with held_up(database_url, session, gate):
            await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
            cut(machine)
        await wait_until(lambda: _logged(capsys, "TooManyConnectionsError"))
        await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        async with asyncio.timeout(10):
            seen = await reading
        kinds = [kind(placed) for placed in seen]
        assert (kinds.count("MESSAGES_SNAPSHOT"), kinds[-1]) == (0, "RUN_FINISHED")
        assert await fleet.events(machine, session) == seen


async def _logged(capsys: pytest.CaptureFixture[str], word: str) -> bool:
    out, err = capsys.readouterr()
    return word in out or word in err


async def test_a_settle_refused_after_an_unknown_outcome_proves_nothing(
    fleet: Fleet, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attempt one was committed, its answer lost; attempt two is refused. Its numbers are used up."""
    async with login(fleet, database_url) as role, superuser(database_url) as other:
        machine = await fleet.machine(commit=30.0)
        session, gate = await fleet.session(machine), fleet.gate()
        told: list[Placed] = []
        reading = asyncio.ensure_future(_collect(fleet, machine, session, told))
        turn = await fleet.send(machine, session, f"[[emulator: tokens=60 delay_ms=10 {gate}]]")
        async with held_up(database_url, session, gate):
            await other.execute(f"ALTER ROLE {role} NOLOGIN")
            cut(machine)
        await wait_until(lambda: _logged(capsys, "InvalidAuthorizationSpecificationError"))
        await other.execute(f"ALTER ROLE {role} LOGIN")
        await asyncio.wait([reading])
        row = await store.read_turn(machine.database, fleet.user, session, turn)
        assert row is not None
        assert row.state == "completed"
        # Whoever was told something of it was told what is true.
        true = await fleet.events(machine, session)
        assert told == true[: len(told)]


async def _collect(fleet: Fleet, machine: Machine, session: UUID, told: list[Placed]) -> None:
    with suppress(CutOff):
        async with aclosing(fleet.follow(machine, session)) as events:
            async for placed in events:
                told.append(placed)
                if kind(placed) in ("RUN_FINISHED", "RUN_ERROR"):
                    return


async def test_a_commit_refused_after_an_unknown_outcome_leaves_no_overlap(
    fleet: Fleet, database_url: str
) -> None:
    """Attempt one is in the log, its answer lost; attempt two cannot have the row. Its bounds are used up."""
    machine = await fleet.machine(commit=0.005)
    session, gate = await fleet.session(machine), fleet.gate()
    await fleet.send(machine, session, f"[[emulator: tokens=100 delay_ms=5 {gate}]]")
    async with superuser(database_url) as other:
        await other.execute(
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN
                    IF EXISTS (SELECT FROM myhealth.segments g WHERE g.session_id = NEW.session_id
                               AND g.epoch = NEW.epoch AND g.last = NEW.last) THEN
                        RAISE EXCEPTION 'refused' USING ERRCODE = 'lock_not_available';
                    END IF;
                    RETURN NEW;
                END $$;
                CREATE TRIGGER refuse BEFORE INSERT ON myhealth.segments FOR EACH ROW
                WHEN (NEW.session_id = '{session}' AND NEW.through IS NULL) EXECUTE FUNCTION refuse();"""
        )
        async with held_up(database_url, session, gate):
            cut(machine)
        await wait_until(lambda: _over(fleet, machine, session))
        rows = await other.fetch(
            "SELECT epoch, first, last FROM myhealth.segments WHERE session_id = $1 "
            "ORDER BY epoch, first, last",
            session,
        )
    for before, after in itertools.pairwise(rows):
        if before["epoch"] == after["epoch"]:
            assert after["first"] == before["last"] + 1, "each position is written once"
    seen = await fleet.events(machine, session)
    assert kind(seen[-1]) == "RUN_FINISHED"


async def _over(fleet: Fleet, machine: Machine, session: UUID) -> bool:
    machine._recovery._sweep_now.set()
    seen = await fleet.events(machine, session)
    return bool(seen) and kind(seen[-1]) in ("RUN_FINISHED", "RUN_ERROR")


async def test_a_session_is_not_taken_twice_by_sweep_and_request(fleet: Fleet, database_url: str) -> None:
    """A request comes while the sweep's claim is on its way: one new epoch, one marker."""
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tokens=2 {gate}]]")
    await gate.reached()
    async with superuser(database_url) as other, superuser(database_url) as watcher:
        async with other.transaction():
            # The claim gets its session's lock and then waits here.
            await other.execute("SELECT FROM myhealth.turns WHERE id = $1 FOR UPDATE", turn)
            machine._runner.lost(machine.hub.live[session])
            machine._recovery._sweep_now.set()
            await wait_until(lambda: _blocked(watcher, "claim_sessions"))
            sending = asyncio.ensure_future(fleet.send(machine, session, "[[emulator: tokens=2]]"))
            await wait_until(lambda: _blocked(watcher, "accept_turn"))
        await sending
        await gate.open()
        seen = await fleet.until_end(machine, session, runs=2)
    assert [kind(placed) for placed in seen].count("MESSAGES_SNAPSHOT") == 1


async def _blocked(watcher: asyncpg.Connection, statement: str) -> bool:
    return bool(
        await watcher.fetchval(
            f"SELECT count(*) {_BACKENDS} AND query LIKE $1 AND cardinality(pg_blocking_pids(pid)) > 0",
            f"%{statement}%",
        )
    )


async def test_readers_of_a_superseded_process_still_follow_the_log(fleet: Fleet) -> None:
    """Its successor believes itself alone and tells nobody."""
    older = await fleet.machine("one", lease=1.0)
    newer = await fleet.machine("one", lease=1.0)
    await wait_until(lambda: _superseded(older))
    session = await fleet.session(newer)
    follower = Follower(older, fleet.user, session, None)
    async with aclosing(follower.batches()) as batches:
        reading = asyncio.ensure_future(anext(batches))
        await wait_until(lambda: _waiting(follower))
        newer._notifier.alone = True
        await fleet.send(newer, session, "[[emulator: tokens=3]]")
        async with asyncio.timeout(20):
            assert kind((await reading)[0]) == "RUN_STARTED"


async def _waiting(follower: Follower) -> bool:
    return follower._caught_up


async def _superseded(machine: Machine) -> bool:
    return machine.superseded


async def test_a_busy_pool_does_not_stop_the_heart(fleet: Fleet, database_url: str) -> None:
    """A machine that has long been dead is to be buried; all connections of the pool are taken."""
    machine = await fleet.machine(lease=0.3)
    async with superuser(database_url) as other:
        await other.execute(
            "INSERT INTO myhealth.machines VALUES ('dead', $1, now() - interval '1 hour')", uuid4()
        )
        taken = [await machine.database.pool.acquire() for _ in range(8)]
        try:
            await wait_until(lambda: _buried(other))
        finally:
            for connection in taken:
                await machine.database.pool.release(connection)


async def _buried(other: asyncpg.Connection) -> bool:
    return not await other.fetchval("SELECT count(*) FROM myhealth.machines WHERE id = 'dead'")


async def test_a_turn_cancelled_just_before_it_begins_is_cancelled_at_once(
    fleet: Fleet, database_url: str
) -> None:
    """The last settle has named the next turn already; the request comes before that begins."""
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate()
    await fleet.send(machine, session, f"[[emulator: tokens=1 {gate}]]")
    second = await fleet.send(machine, session, "[[emulator: tokens=2 ttft_ms=60000]]")
    async with superuser(database_url) as other:
        await other.execute(
            """CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN NEW.cancel_requested := true; RETURN NEW; END $$;
               CREATE TRIGGER late BEFORE UPDATE ON myhealth.turns FOR EACH ROW
               WHEN (OLD.state = 'queued' AND NEW.state = 'running') EXECUTE FUNCTION late();"""
        )
    await gate.open()
    # Well before the second one's model would say a word.
    async with asyncio.timeout(30):
        seen = await fleet.until_end(machine, session, runs=2)
    assert str(second).encode() in seen[-1].event
    assert b"cancelled" in seen[-1].event


class Pausing(Database):
    """A database that pauses before the n-th statement with a word in it."""

    def pause(self, word: str, n: int) -> None:
        self._word, self._count = word, n
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        if self._word in query:
            self._count -= 1
            if self._count == 0:
                self.reached.set()
                await self.go.wait()
        return await super().fetchrow(query, *args)


@asynccontextmanager
async def pausing(machine: Machine, word: str, n: int) -> AsyncGenerator[Pausing]:
    """Let the machine's readers read through a database that pauses."""
    usual = machine.database
    database = Pausing(usual.dsn, min_size=1, max_size=2, lock_timeout_ms=5000)
    database.pause(word, n)
    await database.open()
    machine.database = database
    try:
        yield database
    finally:
        machine.database = usual
        await database.close()


async def test_a_turns_end_comes_with_all_of_its_messages(fleet: Fleet) -> None:
    """The turn ends while a reader whose cursor is unknown is being brought up to date."""
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tokens=3 {gate}]]")
    unknown = Cursor(machine.hub.live[session].epoch + 1, 1)
    async with pausing(machine, "read_turn", 1) as database:
        follower = Follower(machine, fleet.user, session, unknown, turn)
        async with aclosing(follower.batches()) as batches:
            reading = asyncio.ensure_future(anext(batches))
            await database.reached.wait()
            await gate.open()
            await wait_until(lambda: _released(machine, session))
            database.go.set()
            snapshot = await reading
    assert [kind(placed) for placed in snapshot] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert b'"role":"assistant"' in snapshot[1].event


async def _released(machine: Machine, session: UUID) -> bool:
    return session not in machine.hub.live


async def test_a_marker_whose_log_is_compacted_while_it_is_read_ends_the_stream(
    fleet: Fleet, database_url: str
) -> None:
    """What the marker is to close is gone; without its ENDs the reader would be told nonsense."""
    machine = await fleet.machine(commit=0.005)
    session, gate = await fleet.session(machine), fleet.gate(after=6)
    await fleet.send(machine, session, f"[[emulator: tokens=9 delay_ms=10 {gate}]]")
    # A run that has begun, a text that has, and some of it.
    await wait_until(lambda: _logged_events(fleet, machine, session, 2))
    machine._runner.lost(machine.hub.live[session])
    await gate.open()
    await wait_until(lambda: _over(fleet, machine, session))
    await wait_until(lambda: _released(machine, session))
    async with pausing(machine, "read_log", 2) as database:
        follower = Follower(machine, fleet.user, session, None)
        seen: list[str] = []

        async def read() -> None:
            async with aclosing(follower.batches(wait=False)) as batches:
                async for batch in batches:
                    seen.extend(map(kind, batch))

        reading = asyncio.ensure_future(read())
        await database.reached.wait()
        assert await compact(database, before_days=-1) == 1
        database.go.set()
        with pytest.raises(CutOff):
            await reading
    assert "TEXT_MESSAGE_START" in seen
    assert "MESSAGES_SNAPSHOT" not in seen


async def _logged_events(fleet: Fleet, machine: Machine, session: UUID, count: int) -> bool:
    page = await log.read(machine.database, fleet.user, session, START)
    return (
        page is not None and sum(len(item[1]) for item in page.items if not isinstance(item, Marker)) > count
    )
