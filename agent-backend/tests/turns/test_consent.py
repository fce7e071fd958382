"""The look before each model call and each tool, where nothing before has stopped the turn; withdrawing."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent_backend import consents
from agent_backend.consents import Catalogue, Purpose
from agent_backend.db import consents as store
from agent_backend.db import profiles, sessions
from agent_backend.errors import ConsentRequired, MissingConsent
from agent_backend.tools.base import ToolContext
from agent_backend.turns.machine import Machine
from agent_backend.web.stream import Placed

from ..db.owners import Owner
from .conftest import Fleet, kind
from .test_laws import Probe, superuser, wait_until, waits_for
from .test_parking import park

ASK_PROBE = "[[emulator: tool=probe args={} tokens=2]]"
HEALTH: Purpose = "health_data_processing"
AI: Purpose = "third_party_ai"


async def slip(fleet: Fleet, machine: Machine, purpose: Purpose = AI) -> None:
    """Withdraw so that no turn is told of it: what the last look is for."""
    await store.withdraw(machine.database, fleet.user, purpose, ends_turns=False)
    machine.consents.forget(fleet.user)


async def turn_of(fleet: Fleet, machine: Machine, session: UUID, turn: UUID) -> sessions.TurnRow:
    row = await sessions.read_turn(machine.database, fleet.user, session, turn)
    assert row is not None
    return row


async def stored(fleet: Fleet, machine: Machine, session: UUID) -> list[tuple[str, list[dict[str, Any]]]]:
    read = await sessions.read_messages(machine.database, fleet.user, session)
    assert read is not None
    return [(message.role, msgspec.json.decode(message.content)) for message in read.messages]


def refused(events: list[Placed]) -> str:
    """Return what the user reads at the end of a turn that lacked a consent."""
    *_, notice, start, content, end, error = [msgspec.json.decode(each.event) for each in events]
    assert (notice["name"], notice["value"]) == ("notice", "consent_required")
    assert (start["type"], end["type"]) == ("TEXT_MESSAGE_START", "TEXT_MESSAGE_END")
    assert (error["type"], error["code"]) == ("RUN_ERROR", "consent_required")
    return content["delta"]


class Withdrawing(Probe):
    """A tool in whose run the user's consent goes."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self.machine: Machine | None = None

    async def run(self, context: Any, arguments: dict[str, Any]) -> Any:
        assert self.machine is not None
        await slip(self._fleet, self.machine)
        return await super().run(context, arguments)


async def test_no_model_call_follows_a_tool_in_whose_run_the_consent_went(fleet: Fleet) -> None:
    probe = Withdrawing(fleet)
    machine = probe.machine = await fleet.machine(tools={"probe": probe})
    session = await fleet.session(machine)
    turn = await fleet.send(machine, session, ASK_PROBE)
    assert "Consents" in refused(await fleet.until_end(machine, session))
    row = await turn_of(fleet, machine, session, turn)
    assert (row.state, row.error_code, row.model_calls) == ("failed", "consent_required", 1)
    roles = [role for role, _ in await stored(fleet, machine, session)]
    assert roles == ["user", "system", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(("purpose", "runs"), [(HEALTH, 0), (AI, 1)])
async def test_no_tool_runs_when_its_consent_went_while_the_model_spoke(
    fleet: Fleet, database_url: str, purpose: Purpose, runs: int
) -> None:
    probe = Probe()
    machine = await fleet.machine(tools={"probe": probe})
    session, gate = await fleet.session(machine), fleet.gate()
    async with superuser(database_url) as other, other.transaction():
        turn = await fleet.send(machine, session, f"[[emulator: tool=probe args={{}} tokens=2 {gate}]]")
        await gate.reached()
        # The message that asks for the tool cannot be settled meanwhile.
        await other.execute("SELECT FROM myhealth.sessions WHERE id = $1 FOR UPDATE", session)
        await gate.open()
        await wait_until(lambda: waits_for(other))
        await slip(fleet, machine, purpose)
    refused(await fleet.until_end(machine, session))
    assert len(probe.calls) == runs
    assert (await turn_of(fleet, machine, session, turn)).model_calls == 1
    [(_, [result])] = [each for each in await stored(fleet, machine, session) if each[0] == "tool"]
    assert result.get("is_error", False) is (runs == 0), "no call is left open"


class Checked(Probe):
    """A tool that looks before the user is asked for a yes."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = 0

    async def check(self, _context: ToolContext, _arguments: dict[str, Any]) -> None:
        self.checked += 1


@pytest.mark.parametrize("given", [True, False])
async def test_nobody_is_asked_for_a_yes_when_the_consent_went_while_the_model_spoke(
    fleet: Fleet, database_url: str, *, given: bool
) -> None:
    probe = Checked()
    machine = await fleet.machine(tools={"probe": probe}, approvals=("probe",))
    session, gate = await fleet.session(machine), fleet.gate()
    async with superuser(database_url) as other, other.transaction():
        turn = await fleet.send(machine, session, f"[[emulator: tool=probe args={{}} tokens=2 {gate}]]")
        await gate.reached()
        await other.execute("SELECT FROM myhealth.sessions WHERE id = $1 FOR UPDATE", session)
        await gate.open()
        await wait_until(lambda: waits_for(other))
        if not given:
            await slip(fleet, machine, HEALTH)
    states = {"failed", "waiting_approval"}
    await wait_until(lambda: _state_in(fleet, machine, session, turn, states))
    row = await turn_of(fleet, machine, session, turn)
    assert (row.state, probe.checked) == (("waiting_approval", 1) if given else ("failed", 0))
    if not given:
        refused(await fleet.until_end(machine, session))


async def _state_in(fleet: Fleet, machine: Machine, session: UUID, turn: UUID, states: set[str]) -> bool:
    return (await turn_of(fleet, machine, session, turn)).state in states


async def test_a_turn_that_waited_in_the_queue_is_refused_in_the_users_language(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session, gate = await fleet.session(machine), fleet.gate(after=1)
    german = profiles.ProfilePut(locale="de-DE")
    await profiles.write(machine.database, fleet.user, german, dt.datetime.now(dt.UTC))
    await fleet.send(machine, session, f"[[emulator: tokens=3 {gate}]]")
    second = await fleet.send(machine, session, "[[emulator: tokens=3]]")
    await wait_until(lambda: _speaks(fleet, machine, session))
    await slip(fleet, machine, HEALTH)
    await gate.open()
    events = await fleet.until_end(machine, session, runs=2)
    assert "Einwilligung" in refused(events)
    assert [kind(each) for each in events].count("RUN_FINISHED") == 1, "what runs is not told of it here"
    assert (await turn_of(fleet, machine, session, second)).model_calls == 0


async def test_a_parked_turn_takes_no_answer_and_wakes_without_a_call(
    fleet: Fleet, database_url: str
) -> None:
    machine = await fleet.machine()
    parked = await park(fleet, machine)
    await slip(fleet, machine)
    with pytest.raises(ConsentRequired) as refusal:
        await parked.answer()
    assert refusal.value.missing == (MissingConsent(AI, fleet.catalogue.current_version(AI)),)
    assert await parked.state() == "waiting_device"
    await parked.overdue(database_url)
    other = await fleet.machine("two")
    refused(await parked.ended(other))
    assert (await turn_of(fleet, other, parked.session, parked.turn)).model_calls == 1


async def test_nothing_is_accepted_without_and_again_with(fleet: Fleet) -> None:
    machine = await fleet.machine()
    session = await fleet.session(machine)
    for purpose in (HEALTH, AI):
        await machine.commands.withdraw_consent(fleet.user, purpose)
    with pytest.raises(ConsentRequired) as refusal:
        await fleet.send(machine, session, "Hello")
    assert [each.purpose for each in refusal.value.missing] == [HEALTH, AI]
    await fleet.agree(machine)
    await fleet.send(machine, session, "[[emulator: tokens=1]]")
    assert kind((await fleet.until_end(machine, session))[-1]) == "RUN_FINISHED"


async def test_a_new_version_that_requires_renewal_is_asked_for_anew(fleet: Fleet) -> None:
    old = await fleet.machine()
    session = await fleet.session(old)
    newer = [
        msgspec.structs.replace(each, version="2999-01-01")
        for each in consents.load().current()
        if each.purpose == AI
    ]
    fleet.catalogue = Catalogue([*consents.load().current(), *newer])
    new = await fleet.machine("two")
    with pytest.raises(ConsentRequired) as refusal:
        await fleet.send(new, session, "Hello")
    assert refusal.value.missing == (MissingConsent(AI, "2999-01-01"),)
    await fleet.agree(new)
    await fleet.send(new, session, "[[emulator: tokens=1]]")
    assert kind((await fleet.until_end(new, session))[-1]) == "RUN_FINISHED"


async def test_withdrawing_anywhere_ends_what_runs_waits_and_is_parked(fleet: Fleet) -> None:
    one, two = await fleet.machine("one"), await fleet.machine("two")
    running, queue, parked = await fleet.session(one), await fleet.session(one), await park(fleet, one)
    long = "[[emulator: tokens=500 delay_ms=50]]"
    turns = [(running, await fleet.send(one, running, long))]
    turns += [(queue, await fleet.send(one, queue, text)) for text in (long, "[[emulator: tokens=1]]")]
    await wait_until(lambda: _speaks(fleet, one, running))
    await two.commands.withdraw_consent(fleet.user, HEALTH)
    for session, turn in (turns[0], turns[1]):
        assert (await turn_of(fleet, two, session, turn)).state == "cancelled", "when it is answered"
    for session, turn in (turns[2], (parked.session, parked.turn)):
        await fleet.until_end(two, session, runs=2 if session == queue else 1)
        row = await turn_of(fleet, two, session, turn)
        assert row.state == "cancelled"
        assert row.model_calls == (1 if session == parked.session else 0)


async def _speaks(fleet: Fleet, machine: Machine, session: UUID) -> bool:
    return any(kind(each) == "TEXT_MESSAGE_CONTENT" for each in await fleet.events(machine, session))


async def test_a_machine_that_does_not_hear_is_not_waited_for_for_ever(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_backend.turns.consent.WITHDRAWAL_SECONDS", 0.1)
    machine = await fleet.machine()
    session = await fleet.session(machine)
    deaf = await Owner(machine.database, "deaf").register()
    turn, _ = await deaf.accept(fleet.user, session)
    await machine.commands.withdraw_consent(fleet.user, AI)
    row = await turn_of(fleet, machine, session, turn)
    assert (row.state, row.cancel_requested) == ("running", True)


async def test_what_was_given_is_remembered_for_a_moment(fleet: Fleet) -> None:
    machine = await fleet.machine()
    known = machine.consents
    assert await known.missing(fleet.user, "model_call") == []
    await store.withdraw(machine.database, fleet.user, AI, ends_turns=False)
    assert await known.missing(fleet.user, "model_call") == []
    assert await known.missing(fleet.user, "health_data") == []
    known.forget(fleet.user)
    assert await known.missing(fleet.user, "model_call") == [AI]
    assert await known.missing(fleet.user, "model_call") == [AI], "what is missing is not remembered"
    with pytest.raises(ConsentRequired):
        await known.require(uuid4(), "health_data")
