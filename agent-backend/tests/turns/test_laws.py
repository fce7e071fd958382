"""The laws of a running turn: what is told only after it is settled, and what happens exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from agent_backend.db import events as log
from agent_backend.db import leases
from agent_backend.db import sessions as store
from agent_backend.db.pool import Connection
from agent_backend.errors import TooManyRequests
from agent_backend.events import START, Cursor
from agent_backend.telemetry import metrics
from agent_backend.tools.base import ToolContext, ToolResult
from agent_backend.turns.fanout import LiveSession
from agent_backend.turns.machine import Machine
from agent_backend.web.stream import CutOff

from ..gate import Gate
from .conftest import Fleet, kind
from .withheld import way_to

UNSETTLED = {
    "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TOOL_CALL_START", "TOOL_CALL_ARGS",
    "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT",
}  # fmt: skip


@asynccontextmanager
async def superuser(url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def wait_until(check: Callable[[], Any]) -> None:
    """Wait for a condition that only the database or another task can tell of."""
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.002)


class Probe:
    """A tool that notes its calls and, if asked, writes a row as its effect."""

    description = "Notes that it was called."

    def __init__(self, name: str = "probe", *, effect: bool = False, fail_commits: int = 0) -> None:
        self.name = name
        self.input_schema: dict[str, Any] = {"type": "object", "properties": {}}
        self.calls: list[str] = []
        self._effect = effect
        self._fail_commits = fail_commits

    async def run(self, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
        self.calls.append(context.tool_use_id)
        assert arguments == {}

        async def effect(connection: Connection) -> None:
            self._fail_commits -= 1
            if self._fail_commits == 1:
                raise ConnectionResetError
            await connection.execute("INSERT INTO effects VALUES ($1)", context.tool_use_id)
            if self._fail_commits == 0:
                raise ConnectionResetError

        return ToolResult(content="{}", effect=effect if self._effect else None)


async def test_nothing_that_settles_is_told_before_it_is_settled(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine(commit=30.0)
    session, gate = await fleet.session(machine), fleet.gate()
    seen: list[str] = []
    async with superuser(database_url) as other, aclosing(fleet.follow(machine, session)) as events:
        await fleet.send(machine, session, f"[[emulator: tokens=5 delay_ms=5 {gate}]]")
        assert kind(await anext(events)) == "RUN_STARTED"
        await gate.reached()

        async def collect() -> None:
            async for placed in events:
                seen.append(kind(placed))
                if seen[-1] == "RUN_FINISHED":
                    return

        collecting = asyncio.create_task(collect())
        async with other.transaction():
            await other.execute("SELECT FROM myhealth.sessions WHERE id = $1 FOR UPDATE", session)
            await gate.open()
            # Without a group commit it can only be the settle that waits.
            await wait_until(lambda: waits_for(other))
            done, _ = await asyncio.wait([collecting], timeout=0.05)
            assert not done, "the end was told while its settle waited"
            assert "TEXT_MESSAGE_CONTENT" in seen
            assert set(seen) <= UNSETTLED
        async with asyncio.timeout(10):
            await collecting
        assert seen[-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]


async def waits_for(connection: asyncpg.Connection) -> bool:
    """Say whether somebody waits for what this connection holds."""
    return bool(
        await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        )
    )


async def test_no_tool_starts_before_the_message_that_asked_is_settled(
    fleet: Fleet, database_url: str
) -> None:
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe})
    session, gate = await fleet.session(machine), fleet.gate()
    async with superuser(database_url) as other:
        async with other.transaction():
            await fleet.send(machine, session, f"[[emulator: tool=probe args={{}} tokens=2 {gate}]]")
            await gate.reached()
            await other.execute("SELECT FROM myhealth.sessions WHERE id = $1 FOR UPDATE", session)
            await gate.open()
            await wait_until(lambda: waits_for(other))
            assert probe.calls == []
        events = await fleet.until_end(machine, session)
    assert len(probe.calls) == 1
    kinds = [kind(placed) for placed in events]
    assert kinds.index("TOOL_CALL_END") < kinds.index("TOOL_CALL_RESULT")


async def test_a_tools_effect_and_its_result_are_one_even_when_the_commit_fails(
    fleet: Fleet, database_url: str
) -> None:
    probe = Probe(effect=True, fail_commits=2)
    machine = await fleet.machine(tools={"probe": probe})
    session = await fleet.session(machine)
    async with superuser(database_url) as other:
        await other.execute(
            "CREATE TABLE myhealth.effects (id text); GRANT INSERT ON myhealth.effects TO agent_backend"
        )
        await fleet.send(machine, session, "[[emulator: tool=probe args={} tokens=2]]")
        events = await fleet.until_end(machine, session)
        assert len(await other.fetch("SELECT id FROM myhealth.effects")) == 1
    assert Counter(map(kind, events))["TOOL_CALL_RESULT"] == 1
    assert len(probe.calls) == 1, "only the commit is repeated, not the call"


async def test_an_effect_whose_outcome_was_unknown_is_not_done_again(fleet: Fleet, database_url: str) -> None:
    """The commit went through, its answer did not: the repetition finds the result and leaves it at that."""
    machine = await fleet.machine()
    session = await fleet.session(machine)
    turn = await fleet.send(machine, session, "[[emulator: tokens=2 ttft_ms=60000]]")
    live = machine.hub.live[session]
    done: list[str] = []

    async def effect(_connection: Connection) -> None:
        done.append("done")

    step = store.Settlement(
        session_id=session,
        incarnation=machine.incarnation,
        epoch=live.epoch,
        turn_id=turn,
        messages=[store.NewMessage("x", "tool", "[]")],
        first=2,
        last=2,
        events=b'{"type":"X"}',
    )
    settler = machine._runner._settler
    await settler._send(live, step, effect)
    await settler._send(live, step, effect)
    assert done == ["done"]


async def test_one_refused_event_harms_one_session(fleet: Fleet, database_url: str) -> None:
    """The batch is bisected; the refused session is taken anew with a marker and its step starts again."""
    machine = await fleet.machine()
    sessions = [await fleet.session(machine) for _ in range(5)]
    bad = sessions[2]
    async with superuser(database_url) as other:
        await other.execute(
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = 'data_exception'; END $$;
                CREATE TRIGGER refuse BEFORE INSERT ON myhealth.segments FOR EACH ROW
                WHEN (NEW.session_id = '{bad}' AND NEW.first > 1 AND NEW.through IS NULL)
                EXECUTE FUNCTION refuse()"""
        )
        for session in sessions:
            await fleet.send(machine, session, "[[emulator: tokens=30 delay_ms=10]]")
        good = [each for each in sessions if each != bad]
        ends = await asyncio.gather(*(fleet.until_end(machine, each) for each in good))
        assert all(kind(end[-1]) == "RUN_FINISHED" for end in ends)
        await other.execute("DROP TRIGGER refuse ON myhealth.segments")
    machine._recovery._sweep_now.set()
    events = await fleet.until_end(machine, bad)
    kinds = Counter(map(kind, events))
    # More than one marker when the sweep took it before the trigger was gone.
    assert kinds["MESSAGES_SNAPSHOT"] >= 1
    assert kinds["RUN_FINISHED"] == 1


@asynccontextmanager
async def held_up(url: str, session: UUID, gate: Gate) -> AsyncGenerator[None]:
    """Hold a session's row while its answer waits at the gate, open that, and begin once a statement waits.

    Held before, what waits is the call's reservation; held without a gate, the turn may be over already.
    """
    await gate.reached()
    async with superuser(url) as other, other.transaction():
        await other.execute("SELECT FROM myhealth.sessions WHERE id = $1 FOR UPDATE", session)
        await gate.open()
        await wait_until(lambda: waits_for(other))
        yield


async def test_a_commit_whose_answer_is_lost_doubles_nothing(fleet: Fleet, database_url: str) -> None:
    """The statement goes on in Postgres while its client reconnects and repeats it with the same bounds."""
    machine = await fleet.machine(commit=0.005)
    session, gate = await fleet.session(machine), fleet.gate()
    reading = asyncio.ensure_future(fleet.until_end(machine, session))
    await fleet.send(machine, session, f"[[emulator: tokens=300 delay_ms=5 {gate}]]")
    async with held_up(database_url, session, gate):
        # What is pending has outgrown what is in flight: bounds that did not freeze would differ.
        cut = len(machine.hub.live[session].pending) + 5
        await wait_until(lambda: _pending(machine, session, cut))
        for holder in machine.database.pool._holders:
            if holder._con is not None:
                holder._con.terminate()
        await wait_until(lambda: _pending(machine, session, cut + 5))
    seen = await reading
    assert kind(seen[-1]) == "RUN_FINISHED"
    assert await fleet.events(machine, session) == seen


@pytest.mark.parametrize("delay_ms", [5, 7, 10])
async def test_a_settle_waits_for_the_group_commit_in_flight(
    fleet: Fleet, database_url: str, delay_ms: int
) -> None:
    machine = await fleet.machine(commit=0.005)
    session, gate = await fleet.session(machine), fleet.gate()
    reading = asyncio.ensure_future(fleet.until_end(machine, session))
    await fleet.send(machine, session, f"[[emulator: tokens={1000 // delay_ms} delay_ms={delay_ms} {gate}]]")
    async with held_up(database_url, session, gate):
        live = machine.hub.live[session]
        await wait_until(lambda: _settling(machine, live))
    seen = await reading
    assert await fleet.events(machine, session) == seen
    numbers = [placed.cursor.n for placed in seen if placed.cursor]
    assert numbers == list(range(1, len(seen) + 1))


async def _pending(machine: Machine, session: UUID, count: int) -> bool:
    live = machine.hub.live.get(session)
    return live is not None and len(live.pending) >= count


async def _settling(machine: Machine, live: LiveSession) -> bool:
    return live in machine._committer._settling


async def test_what_readers_saw_is_what_the_log_holds_though_connections_die(
    fleet: Fleet, database_url: str
) -> None:
    """Outcomes become unknown in mid-commit; frozen bounds keep the log whole, in order, without doubles."""
    machine = await fleet.machine(commit=0.005)
    sessions = [await fleet.session(machine) for _ in range(4)]
    async with superuser(database_url) as other:
        running = [asyncio.ensure_future(fleet.until_end(machine, session)) for session in sessions]
        for session in sessions:
            await fleet.send(machine, session, "[[emulator: tokens=150 delay_ms=3]]")
        while not all(task.done() for task in running):
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'agent-backend' AND query LIKE '%append_segments%'"
            )
            await asyncio.wait(running, timeout=0.02)
    for session, task in zip(sessions, running, strict=True):
        seen = task.result()
        assert kind(seen[-1]) == "RUN_FINISHED"
        assert await fleet.events(machine, session) == seen
        numbers = [placed.cursor.n for placed in seen if placed.cursor]
        assert numbers == list(range(1, len(seen) + 1))


async def test_database_calls_do_not_grow_with_tokens(fleet: Fleet) -> None:
    machine = await fleet.machine(commit=0.1)
    sessions = [await fleet.session(machine) for _ in range(10)]
    before = sum(metrics.group_commit_seconds.counts)
    started = asyncio.get_running_loop().time()
    for session in sessions:
        await fleet.send(machine, session, "[[emulator: tokens=100 delay_ms=5]]")
    await asyncio.gather(*(fleet.until_end(machine, session) for session in sessions))
    seconds = asyncio.get_running_loop().time() - started
    calls = sum(metrics.group_commit_seconds.counts) - before
    assert 1 <= calls <= seconds / 0.1 + 1


def test_settling_never_notifies(postgres_url: str, template: str) -> None:
    """A NOTIFY inside a settling transaction serialises all commits of the database."""

    async def sources() -> list[str]:
        async with superuser(postgres_url.replace("/postgres?", f"/{template}?")) as connection:
            rows = await connection.fetch(
                "SELECT prosrc FROM pg_proc WHERE pronamespace = 'myhealth'::regnamespace"
            )
            return [row[0] for row in rows]

    found = asyncio.run(sources())
    assert len(found) > 15
    assert not [source for source in found if "notify" in source.lower()]


async def test_no_wake_up_is_lost_when_messages_race_with_the_end_of_a_turn(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    count = 30
    reading = asyncio.ensure_future(fleet.until_end(machine, session, runs=count))
    for _ in range(count):
        while not await _sent(fleet, machine, session):
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        seen = await reading
    kinds = Counter(map(kind, seen))
    assert (kinds["RUN_STARTED"], kinds["RUN_FINISHED"]) == (count, count)
    assert kinds["MESSAGES_SNAPSHOT"] == 0, "no hand-over between turns is unclean"


async def _sent(fleet: Fleet, machine: Machine, session: UUID) -> bool:
    try:
        await fleet.send(machine, session, "[[emulator: tokens=1]]")
    except TooManyRequests:
        return False
    return True


async def test_a_late_machine_that_lost_its_lease_publishes_nothing_more(fleet: Fleet) -> None:
    one = await fleet.machine("one", lease=30.0)
    two = await fleet.machine("two", lease=30.0)
    session = await fleet.session(one)
    await fleet.send(one, session, "[[emulator: tokens=9000 delay_ms=5]]")
    reading = asyncio.ensure_future(_read_until_cut(fleet, one, session))
    await wait_until(lambda: _grown(fleet, two, session, 20))
    await _expire(one)
    (claim,) = await _claim(two, one)
    two._runner.begin(claim)
    seen = await reading
    old = [cursor for cursor in seen if cursor.epoch < claim.epoch]
    assert old == seen, "the reader of the old owner saw nothing of, or after, the new epoch"
    page = await log.read(two.database, fleet.user, session, START)
    assert page is not None
    await two.commands.cancel(fleet.user, session, claim.turn_id or session)
    events = await fleet.until_end(two, session)
    assert [kind(each) for each in events].count("MESSAGES_SNAPSHOT") >= 1
    assert kind(events[-1]) == "RUN_FINISHED"


async def _grown(fleet: Fleet, machine: Machine, session: UUID, count: int) -> bool:
    return len(await fleet.events(machine, session)) > count


async def _read_until_cut(fleet: Fleet, machine: Machine, session: UUID) -> list[Cursor]:
    seen: list[Cursor] = []
    with pytest.raises(CutOff):  # noqa: PT012 - what was seen before counts
        async with aclosing(fleet.follow(machine, session)) as events:
            async for placed in events:
                seen += [placed.cursor] if placed.cursor else []
    return seen


async def _expire(machine: Machine) -> None:
    """Let a machine's heart stop, its lease run out, and everything else of it go on."""
    for task in machine._work.values():
        if task.get_name() == "recovery":
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    async with machine.database.pool.acquire() as connection:
        await leases.beat(connection, "one", machine.incarnation, -1.0)


async def _claim(machine: Machine, of: Machine) -> Any:
    seen = await leases.claimable(machine.database, machine.incarnation, [of.incarnation], [], 10)
    return await leases.claim(machine.database, machine.incarnation, [of.incarnation], seen)


@pytest.mark.parametrize("attempts", [5, 6])
async def test_a_turn_that_keeps_bringing_its_owner_down_is_given_up(
    fleet: Fleet, database_url: str, attempts: int
) -> None:
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tokens=3 {gate}]]")
    async with superuser(database_url) as other:
        await other.execute("UPDATE myhealth.turns SET attempts = $2 WHERE id = $1", turn, attempts - 1)
    machine._runner.lost(machine.hub.live[session])
    await gate.open()
    machine._recovery._sweep_now.set()
    events = await fleet.until_end(machine, session)
    assert kind(events[-1]) == ("RUN_FINISHED" if attempts <= 5 else "RUN_ERROR")


@pytest.mark.parametrize(
    ("bounds", "notice"),
    [({"max_steps": 3}, b"budget.steps"), ({"usd_micros_per_turn": 1}, b"budget.turn")],
)
async def test_a_turn_keeps_to_its_agents_bounds(fleet: Fleet, bounds: dict[str, Any], notice: bytes) -> None:
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe}, **bounds)
    session = await fleet.session(machine)
    await fleet.send(machine, session, "[[emulator: tool=probe args={} rounds=9]]")
    events = await fleet.until_end(machine, session)
    assert kind(events[-1]) == "RUN_FINISHED"
    assert notice in events[-1].event
    assert len(probe.calls) == bounds.get("max_steps", 1)


OVERLAPS = """
    SELECT first FROM (
        SELECT first, coalesce(lag(last) OVER (PARTITION BY epoch ORDER BY last), 0) AS before
        FROM myhealth.segments WHERE session_id = $1 AND through IS NULL) s
    WHERE first <> before + 1 AND before <> 0"""


async def test_a_machine_that_leaves_writes_nothing_twice(fleet: Fleet, database_url: str) -> None:
    """It is told to stop while a group commit has been done and its answer has not come."""
    way, fleet._database_url = await fleet._stack.enter_async_context(way_to(database_url))
    async with superuser(database_url) as other:
        machine = await fleet.machine(commit=0.2, lease=6.0)
        session = await fleet.session(machine)
        await fleet.send(machine, session, "[[emulator: tokens=90 delay_ms=20]]")
        written = "SELECT count(*) FROM myhealth.segments WHERE session_id = $1"
        # A statement's first use on a connection takes more answers than one.
        await wait_until(lambda: _more(other, written, session, 2))
        await wait_until(lambda: _pending(machine, session, 3))
        before = await other.fetchval(written, session)
        way.open.clear()
        try:
            await wait_until(lambda: _more(other, written, session, before))
            # The model goes on to its end, and the settle waits for the commit in flight.
            await wait_until(lambda: _waits_to_settle(machine, session))
            stopping = asyncio.create_task(machine.stop())
            await asyncio.sleep(0)
        finally:
            way.open.set()
        await stopping
        assert await other.fetch(OVERLAPS, session) == []


async def test_a_settle_whose_end_is_not_waited_for_is_not_written_beside(
    fleet: Fleet, database_url: str
) -> None:
    """The machine stops while a settle has been done and its answer has not come."""
    way, fleet._database_url = await fleet._stack.enter_async_context(way_to(database_url))
    async with superuser(database_url) as other:
        machine = await fleet.machine(commit=30.0, connections=1, tools={"probe": Probe()})
        session = await fleet.session(machine)
        # A statement's first use on a connection takes more answers than one.
        await fleet.send(machine, session, "[[emulator: tool=probe args={} tokens=3]]")
        await fleet.until_end(machine, session)
        await fleet.send(machine, session, "[[emulator: tool=probe args={} thinking=60 delay_ms=20]]")
        asked = "SELECT count(*) FROM myhealth.messages WHERE session_id = $1 AND role = 'assistant'"
        before = await other.fetchval(asked, session)
        await wait_until(lambda: _pending(machine, session, 3))
        way.open.clear()
        try:
            await wait_until(lambda: _more(other, asked, session, before))
            stopping = asyncio.create_task(machine.stop())
            await asyncio.sleep(0)
        finally:
            way.open.set()
        await stopping
        assert await other.fetch(OVERLAPS, session) == []


async def _more(other: asyncpg.Connection, query: str, session: UUID, before: int | None) -> bool:
    return (await other.fetchval(query, session) or 0) > (before or 0)


async def _waits_to_settle(machine: Machine, session: UUID) -> bool:
    live = machine.hub.live.get(session)
    return live is not None and live in machine._committer._settling
