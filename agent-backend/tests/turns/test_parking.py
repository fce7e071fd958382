"""Calls that a device or the user answers: the turn waits without a lease, and goes on exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.db.tool_calls import ToolCallRow
from agent_backend.errors import Conflict, NotFound
from agent_backend.turns.machine import Machine
from agent_backend.turns.versions import DeviceTool
from agent_backend.web.stream import Placed

from .conftest import Fleet, kind
from .test_laws import Probe, superuser, wait_until

NO_INPUT: dict[str, Any] = {"type": "object", "properties": {}}
READ = DeviceTool(name="read_heart", description="Reads the heart rate.", input_schema=NO_INPUT)
WRITE = DeviceTool(name="log_water", description="Logs water.", input_schema=NO_INPUT, effects=True)
ASK_READ = "[[emulator: tool=read_heart args={} tokens=2]]"
ASK_WRITE = "[[emulator: tool=log_water args={} tokens=2]]"
ASK_PROBE = "[[emulator: tool=probe args={} tokens=2]]"


class Parked:
    """A turn that waits, and what may happen to it."""

    def __init__(self, fleet: Fleet, machine: Machine, session: UUID, turn: UUID, call: ToolCallRow) -> None:
        self.fleet = fleet
        self.machine = machine
        self.session = session
        self.turn = turn
        self.call = call

    async def answer(
        self, content: str | None = "62", status: Any = "ok", *, device: str | None = None, on: Any = None
    ) -> None:
        await (on or self.machine).commands.put_result(
            self.fleet.user, self.session, self.call.id, status=status, content=content, device=device
        )

    async def claim(self, device: str) -> None:
        await self.machine.commands.claim_call(self.fleet.user, self.session, self.call.id, device)

    async def state(self) -> str:
        row = await store.read_turn(self.machine.database, self.fleet.user, self.session, self.turn)
        assert row is not None
        return row.state

    async def ended(self, machine: Machine | None = None, runs: int = 1) -> list[Placed]:
        return await self.fleet.until_end(machine or self.machine, self.session, runs=runs)

    async def overdue(self, url: str) -> None:
        """Let the call's time be over."""
        async with superuser(url) as other:
            await other.execute(
                "UPDATE myhealth.turns SET deadline = '2000-01-01' WHERE session_id = $1 AND id = $2",
                self.session,
                self.turn,
            )


async def park(fleet: Fleet, machine: Machine, text: str = ASK_READ) -> Parked:
    """Let a turn come to a call that somebody outside has to answer."""
    session = await fleet.session(machine, [READ, WRITE])
    turn = await fleet.send(machine, session, text)
    call = await waiting(fleet, machine, session)
    return Parked(fleet, machine, session, turn, call)


async def waiting(fleet: Fleet, machine: Machine, session: UUID) -> ToolCallRow:
    """Wait until a call is open and this machine holds the session no longer; return the call."""
    found: list[ToolCallRow] = []

    async def parked() -> bool:
        found[:] = await tool_calls.read(machine.database, fleet.user, session)
        return bool(found) and session not in machine.hub.live

    await wait_until(parked)
    return found[0]


def results(events: list[Placed]) -> list[str]:
    return [msgspec.json.decode(each.event)["content"] for each in events if kind(each) == "TOOL_CALL_RESULT"]


async def test_a_device_call_parks_its_turn_and_the_answer_wakes_it(fleet: Fleet) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    assert machine.hub.live == {}, "a parked turn keeps no machine awake"
    assert await parked.state() == "waiting_device"
    assert (parked.call.name, parked.call.kind, parked.call.state) == ("read_heart", "device", "pending")
    await parked.answer()
    events = await parked.ended()
    kinds = [kind(each) for each in events]
    assert kinds.count("RUN_STARTED") == kinds.count("RUN_FINISHED") == 1
    assert "MESSAGES_SNAPSHOT" not in kinds, "parking is a clean end: no takeover"
    at = kinds.index("CUSTOM")
    assert (kinds[at - 1], kinds[at + 1]) == ("TOOL_CALL_END", "TOOL_CALL_RESULT")
    pending = msgspec.json.decode(events[at].event)
    assert pending["name"] == "tool_call_pending"
    assert pending["value"] | {"expiresAt": ""} == {
        "toolCallId": parked.call.id,
        "toolName": "read_heart",
        "kind": "device",
        "effects": False,
        "expiresAt": "",
    }
    assert results(events) == ["62"]
    assert await parked.state() == "completed"


async def test_usage_and_bounds_count_over_parking(fleet: Fleet) -> None:
    machine = await fleet.machine(max_steps=3)
    session = await fleet.session(machine, [READ])
    turn = await fleet.send(machine, session, "[[emulator: tool=read_heart args={} tokens=2 rounds=9]]")
    for _ in range(3):
        call = await waiting(fleet, machine, session)
        await Parked(fleet, machine, session, turn, call).answer()
    events = await fleet.until_end(machine, session)
    assert msgspec.json.decode(events[-1].event)["result"]["notice"] == "budget.steps"
    row = await store.read_turn(machine.database, fleet.user, session, turn)
    assert row is not None
    assert row.model_calls == 3


async def test_a_turn_may_park_more_often_than_it_may_break(fleet: Fleet) -> None:
    machine = await fleet.machine(max_steps=20)
    session = await fleet.session(machine, [READ])
    turn = await fleet.send(machine, session, "[[emulator: tool=read_heart args={} tokens=2 rounds=7]]")
    for _ in range(7):
        call = await waiting(fleet, machine, session)
        await Parked(fleet, machine, session, turn, call).answer()
    assert kind((await fleet.until_end(machine, session))[-1]) == "RUN_FINISHED"


async def test_the_first_answer_wins_among_twenty(fleet: Fleet) -> None:
    machine, other = await fleet.machine(), await fleet.machine("two")
    parked = await park(fleet, machine)
    answers = [
        parked.answer(str(n % 10), on=(machine, other)[n % 2])  # each is sent twice
        for n in range(20)
    ]
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    taken = [n % 10 for n, outcome in enumerate(outcomes) if outcome is None]
    assert len(taken) == 2
    assert len(set(taken)) == 1, "one answer, sent twice"
    assert all(outcome is None or isinstance(outcome, Conflict) for outcome in outcomes)
    events = await parked.ended()
    assert results(events) == [str(taken[0])]
    assert Counter(map(kind, events))["RUN_FINISHED"] == 1
    await parked.answer(str(taken[0]))
    with pytest.raises(Conflict):
        await parked.answer("another")


async def test_an_effect_is_claimed_by_one_device(fleet: Fleet) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine, ASK_WRITE)
    for nobody in ("phone", None):
        with pytest.raises(Conflict):
            await parked.answer("done", device=nobody)
    outcomes = await asyncio.gather(
        *(parked.claim(device) for device in ("phone", "watch", "phone", "watch")), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 2
    holder, other = ("phone", "watch") if outcomes[0] is None else ("watch", "phone")
    for device in (other, None):
        with pytest.raises(Conflict):
            await parked.answer("done", device=device)
    await parked.answer("done", device=holder)
    assert results(await parked.ended()) == ["done"]
    # It is over: a device that asks again must not act again.
    for device in (holder, other):
        with pytest.raises(Conflict):
            await parked.claim(device)


async def test_what_the_model_reads_of_each_status(fleet: Fleet) -> None:
    machine = await fleet.machine()
    for status in ("empty_or_denied", "locked", "unavailable", "declined"):
        parked = await park(fleet, machine)
        await parked.answer(None, status)
        [result] = results(await parked.ended())
        assert msgspec.json.decode(result)["status"] == status
        read = await store.read_messages(machine.database, fleet.user, parked.session)
        assert read is not None
        [block] = msgspec.json.decode(next(m.content for m in read.messages if m.role == "tool"))
        assert block.get("is_error", False) is (status != "empty_or_denied")


async def test_nobody_answers_for_somebody_else(fleet: Fleet) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine, ASK_WRITE)
    stranger = uuid4()
    with pytest.raises(NotFound):
        await machine.commands.put_result(
            stranger, parked.session, parked.call.id, status="ok", content="x", device=None
        )
    with pytest.raises(NotFound):
        await machine.commands.claim_call(stranger, parked.session, parked.call.id, "phone")
    with pytest.raises(NotFound):
        await machine.commands.claim_call(fleet.user, parked.session, "toolu_none", "phone")
    assert await tool_calls.read(machine.database, stranger, parked.session) == []
    assert await tool_calls.read(machine.database, stranger, parked.session, parked.turn) == []


# --- approvals ----------------------------------------------------------------------------------------


async def test_a_tool_that_needs_a_yes_runs_only_after_it(fleet: Fleet) -> None:
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe}, approvals=("probe",))
    parked = await park(fleet, machine, ASK_PROBE)
    assert await parked.state() == "waiting_approval"
    assert probe.calls == []
    with pytest.raises(Conflict):
        await parked.claim("phone")
    await parked.answer(None)
    assert results(await parked.ended()) == ["{}"]
    assert probe.calls == [parked.call.id]


@pytest.mark.parametrize("how", ["declined", "timeout", "cancel", "message", "interrupt"])
async def test_without_a_yes_the_tool_never_runs(fleet: Fleet, database_url: str, how: str) -> None:
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe}, approvals=("probe",))
    parked = await park(fleet, machine, ASK_PROBE)
    match how:
        case "declined":
            await parked.answer(None, "declined")
        case "timeout":
            await parked.overdue(database_url)
            machine._recovery._sweep_now.set()
        case "cancel":
            await machine.commands.cancel(fleet.user, parked.session, parked.turn)
        case _:
            on_busy = "interrupt" if how == "interrupt" else None
            await fleet.send(machine, parked.session, "[[emulator: tokens=1]]", on_busy=on_busy)
    events = await parked.ended()
    assert probe.calls == []
    assert len(results(events)) == 1
    cancelled = how in ("cancel", "interrupt")
    assert await parked.state() == ("cancelled" if cancelled else "completed")


async def test_tools_of_the_server_run_before_the_turn_waits(fleet: Fleet) -> None:
    """One message with two calls: what we can do is done and settled, then the turn waits for the other."""
    probe = Probe("get_sleep")
    machine = await fleet.machine(tools={"get_sleep": probe})
    steps = DeviceTool(name="get_daily_metrics", description="Reads days.", input_schema=NO_INPUT)
    session = await fleet.session(machine, [steps])
    turn = await fleet.send(machine, session, "How did I sleep, and how many steps did I take?")
    call = await waiting(fleet, machine, session)
    before = await fleet.events(machine, session)
    assert results(before) == ["{}"]
    assert len(probe.calls) == 1
    await Parked(fleet, machine, session, turn, call).answer('{"steps": 4200}')
    events = await fleet.until_end(machine, session)
    assert results(events) == ["{}", '{"steps": 4200}']
    assert len(probe.calls) == 1


# --- expiry -------------------------------------------------------------------------------------------


async def test_the_sweep_ends_what_nobody_answers(fleet: Fleet) -> None:
    machine = await fleet.machine(lease=1.0, call_seconds=0.1)
    session = await fleet.session(machine, [READ])
    await fleet.send(machine, session, ASK_READ)
    events = await fleet.until_end(machine, session)
    [result] = results(events)
    assert msgspec.json.decode(result)["status"] == "timeout"
    [call] = await tool_calls.read(machine.database, fleet.user, session, None) or [None]
    assert call is None, "an expired call is not offered any more"


async def test_a_late_answer_wins_while_nobody_has_swept(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    await parked.overdue(database_url)
    await parked.answer("late")
    assert results(await parked.ended()) == ["late"]


async def test_an_answer_after_the_expiry_is_refused(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    await parked.overdue(database_url)
    machine._recovery._sweep_now.set()
    await parked.ended()
    with pytest.raises(Conflict, match="expired"):
        await parked.answer("too late")


@pytest.mark.parametrize("seed", range(8))
async def test_answer_and_expiry_race_to_one_result(fleet: Fleet, database_url: str, seed: int) -> None:
    luck = random.Random(seed)
    machine, other = await fleet.machine(), await fleet.machine("two")
    parked = await park(fleet, machine)
    await parked.overdue(database_url)

    async def answer() -> bool:
        await asyncio.sleep(luck.random() * 0.01)
        try:
            await parked.answer("in time", on=luck.choice((machine, other)))
        except Conflict:
            return False
        return True

    async def sweep(on: Machine) -> None:
        await asyncio.sleep(luck.random() * 0.01)
        await on._recovery.sweep()

    won, *_ = await asyncio.gather(answer(), sweep(machine), sweep(other))
    events = await parked.ended()
    [result] = results(events)
    assert (result == "in time") is won
    assert Counter(map(kind, events))["RUN_FINISHED"] == 1
    assert await parked.state() == "completed"


# --- what else may happen while a turn waits ------------------------------------------------------------


async def test_a_new_message_answers_what_is_waited_for(fleet: Fleet) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    await fleet.send(machine, parked.session, "[[emulator: tokens=1]]")
    events = await parked.ended(runs=2)
    [result] = results(events)
    assert msgspec.json.decode(result)["message"] == "The user sent a new message instead."
    assert await parked.state() == "completed", "the turn goes on, then the next one runs"
    with pytest.raises(Conflict):
        await parked.answer()


async def test_an_interrupt_ends_a_parked_turn(fleet: Fleet) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    await fleet.send(machine, parked.session, "[[emulator: tokens=1]]", on_busy="interrupt")
    events = await parked.ended(runs=2)
    assert msgspec.json.decode(results(events)[0])["message"] == "The user sent a new message instead."
    assert await parked.state() == "cancelled"


async def test_a_refused_message_leaves_the_turn_waiting(fleet: Fleet) -> None:
    machine, other = await fleet.machine(), await fleet.machine("two")
    parked = await park(fleet, machine)
    for each in (machine, other):
        with pytest.raises(Conflict):
            await fleet.send(each, parked.session, "x", on_busy="reject")
        # The same turn again is the same turn, also now.
        await each.commands.put_turn(
            fleet.user, parked.session, parked.turn, text=ASK_READ, on_busy=None, message_id=None
        )
        assert await parked.state() == "waiting_device"
        assert each.hub.live == {}
    await parked.answer(on=other)
    assert results(await parked.ended()) == ["62"]


async def test_cancelling_ends_a_parked_turn(fleet: Fleet) -> None:
    machine, other = await fleet.machine(), await fleet.machine("two")
    parked = await park(fleet, machine)
    state = await other.commands.cancel(fleet.user, parked.session, parked.turn)
    assert state == "waiting_device"
    events = await parked.ended(other)
    assert await parked.state() == "cancelled"
    assert msgspec.json.decode(events[-1].event)["outcome"]["type"] == "cancelled"
    assert len(results(events)) == 1, "the history stays valid for the provider"
    with pytest.raises(Conflict):
        await parked.answer()


async def test_a_turn_asked_to_stop_does_not_park(fleet: Fleet, database_url: str) -> None:
    """The request reaches the database, and not the owner, before the turn comes to its call."""
    machine = await fleet.machine()
    session, gate = await fleet.session(machine, [READ]), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tool=read_heart args={{}} tokens=2 {gate}]]")
    await gate.reached()
    async with superuser(database_url) as other:
        await other.execute(
            "UPDATE myhealth.turns SET cancel_requested = true WHERE session_id = $1 AND id = $2",
            session,
            turn,
        )
    await gate.open()
    events = await fleet.until_end(machine, session)
    assert msgspec.json.decode(events[-1].event)["outcome"]["type"] == "cancelled"
    assert "CUSTOM" not in map(kind, events)


async def test_what_was_queued_before_the_call_waits_with_it(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session, gate = await fleet.session(machine, [READ]), fleet.gate()
    turn = await fleet.send(machine, session, f"[[emulator: tool=read_heart args={{}} tokens=2 {gate}]]")
    await fleet.send(machine, session, "[[emulator: tokens=1]]")
    await gate.open()
    call = await waiting(fleet, machine, session)
    await machine._recovery.sweep()
    assert machine.hub.live == {}, "what is queued behind a parked turn is no work yet"
    parked = Parked(fleet, machine, session, turn, call)
    assert await parked.state() == "waiting_device"
    await parked.answer()
    assert results(await parked.ended(runs=2)) == ["62"]


async def test_parking_whose_answer_is_lost_parks_once(fleet: Fleet, database_url: str) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine, [READ])
    original, outcomes = machine._runner._settler._repeated, list[bool]()

    async def twice(live: Any, attempt: Any) -> Any:
        first = await original(live, attempt)
        if isinstance(first, bool):
            outcomes.extend([first, await original(live, attempt)])
        return first

    machine._runner._settler._repeated = twice
    turn = await fleet.send(machine, session, ASK_READ)
    call = await waiting(fleet, machine, session)
    assert outcomes == [True, True]
    await Parked(fleet, machine, session, turn, call).answer()
    events = await fleet.until_end(machine, session)
    assert Counter(map(kind, events))["CUSTOM"] == 1


async def test_an_owner_that_dies_after_the_answer_loses_nothing(fleet: Fleet) -> None:
    """The answer is taken, its owner gone before the result is settled: the next owner reads it again."""
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    release = asyncio.Event()
    original = machine._runner._settler.settle

    async def never(*args: Any, **more: Any) -> Any:
        release.set()
        await asyncio.Event().wait()
        return await original(*args, **more)

    machine._runner._settler.settle = never
    await parked.answer()
    await release.wait()
    await machine.stop()
    heir = await fleet.machine("two")
    events = await parked.ended(heir)
    assert results(events) == ["62"]
    assert Counter(map(kind, events))["RUN_FINISHED"] == 1


async def test_a_reader_follows_over_parking_without_a_cut(fleet: Fleet) -> None:
    machine, other = await fleet.machine(), await fleet.machine("two")
    session = await fleet.session(machine, [READ])
    turn = await fleet.send(machine, session, ASK_READ)
    async with aclosing(fleet.follow(other, session)) as events:
        seen: list[Placed] = []
        while not seen or kind(seen[-1]) != "RUN_FINISHED":
            seen.append(await anext(events))
            if kind(seen[-1]) == "CUSTOM":
                call = await waiting(fleet, machine, session)
                await Parked(fleet, machine, session, turn, call).answer(on=other)
    whole = await fleet.events(machine, session)
    assert seen == whole
    for k in range(len(whole)):
        assert await fleet.events(other, session, whole[k].cursor) == whole[k + 1 :]
