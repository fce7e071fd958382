from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.db import sessions as store
from agent_backend.turns.machine import Machine
from agent_backend.turns.watchdog import Clocks

from .conftest import Fleet, kind
from .test_laws import OVERLAPS, held_up, superuser

TOLERANCE = 2.0
small = st.floats(-1.9, 1.9)
large = st.floats(2.1, 1e6)


@given(st.lists(st.tuples(st.floats(0, 1.9), small), max_size=20))
def test_a_busy_machine_is_not_taken_for_a_frozen_one(ticks: list[tuple[float, float]]) -> None:
    clocks, monotonic, wall = Clocks(TOLERANCE), 100.0, 1e9
    clocks.tick(monotonic, wall, 1.0)
    for late, drift in ticks:
        monotonic += 1.0 + late
        wall += 1.0 + late + drift
        assert clocks.tick(monotonic, wall, 1.0) == 0


@given(large)
def test_a_stopped_process_finds_its_timer_late(frozen: float) -> None:
    clocks = Clocks(TOLERANCE)
    clocks.tick(100.0, 1e9, 1.0)
    assert abs(clocks.tick(101.0 + frozen, 1e9 + 1.0 + frozen, 1.0) - frozen) < 1e-3


@given(large, st.sampled_from([1, -1]))
def test_clocks_that_part_tell_of_a_restored_snapshot(frozen: float, sign: int) -> None:
    clocks = Clocks(TOLERANCE)
    clocks.tick(100.0, 1e9, 1.0)
    assert abs(clocks.tick(101.0, 1e9 + 1.0 + sign * frozen, 1.0) - frozen) < 1e-3
    assert clocks.tick(102.0, 1e9 + 2.0 + sign * frozen, 1.0) == 0, "told once"


@given(large)
def test_only_the_databases_clock_tells_of_a_snapshot_whose_clocks_stood_still(frozen: float) -> None:
    clocks = Clocks(TOLERANCE)
    assert clocks.compare(1e9, 100.0) == 0
    assert clocks.compare(1e9 + 5, 105.0) == 0
    assert abs(clocks.compare(1e9 + 10 + frozen, 110.0) - frozen) < 1e-3
    assert clocks.compare(1e9 + 15 + frozen, 115.0) == 0, "told once"


async def test_after_a_thaw_nothing_goes_over_an_old_connection(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    async with superuser(database_url) as other:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'agent-backend'"
        )
        before = {row[0] for row in await other.fetch(query)}
        machine._recovery._thawed(60.0)
        await fleet.send(machine, session, "[[emulator: tokens=3]]")
        seen = await fleet.until_end(machine, session)
        assert kind(seen[-1]) == "RUN_FINISHED"
        async with asyncio.timeout(10):
            while before & {row[0] for row in await other.fetch(query)} or not await _listens(other):
                await asyncio.sleep(0.01)


async def _listens(other: asyncpg.Connection) -> bool:
    return (
        await other.fetchrow(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'agent-backend' AND query ILIKE 'listen%'"
        )
        is not None
    )


async def test_a_thaw_under_a_group_commit_writes_nothing_twice(
    fleet: Fleet, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pool is dropped while the statement waits in Postgres, which then carries it out."""
    machine = await fleet.machine(commit=0.005)
    session, gate = await fleet.session(machine), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tokens=100 delay_ms=5 {gate}]]")
    async with held_up(database_url, session, gate):
        machine.database.renew()
    await ended(fleet, machine, session, turn)
    async with superuser(database_url) as other:
        assert await other.fetch(OVERLAPS, session) == []
    assert "background_work_broke" not in capsys.readouterr().err


async def test_a_model_call_that_a_freeze_broke_begins_anew(fleet: Fleet) -> None:
    machine = await fleet.machine(lease=3.0)
    session = await fleet.session(machine)
    machine._recovery._thawed(60.0)
    turn = await fleet.send(
        machine, session, f"[[emulator: id={session} tokens=12 delay_ms=5 fault=reset;after=6 fault_times=1]]"
    )
    row = await ended(fleet, machine, session, turn)
    kinds = [kind(placed) for placed in await fleet.events(machine, session)]
    assert row.state == "completed"
    assert (kinds.count("RUN_STARTED"), kinds.count("MESSAGES_SNAPSHOT"), kinds[-1]) == (1, 1, "RUN_FINISHED")


async def ended(fleet: Fleet, machine: Machine, session: UUID, turn: UUID) -> store.TurnRow:
    """Wait for a turn's end and return it."""
    async with asyncio.timeout(20):
        while True:
            row = await store.read_turn(machine.database, fleet.user, session, turn)
            if row is not None and row.state in ("completed", "failed"):
                return row
            await asyncio.sleep(0.01)


async def test_without_a_freeze_a_broken_model_call_fails_the_turn(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    await fleet.send(machine, session, f"[[emulator: id={session} tokens=12 fault=reset;after=6]]")
    assert kind((await fleet.until_end(machine, session))[-1]) == "RUN_ERROR"
