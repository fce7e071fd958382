"""A turn's account where its calls end in odd ways: what is closed, and what bounds the next prompt."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from agent_backend.engines.base import StepRequest
from agent_backend.errors import OverBudget
from agent_backend.turns.spending import TurnAccount

from .conftest import Fleet, kind
from .test_laws import superuser

REQUEST = StepRequest(
    model="claude-sonnet-5-5",
    system="You are a test.",
    tools=[],
    messages=[],
    max_tokens=1000,
    thinking="off",
    session_id=str(uuid4()),
    user_ref="nobody",
)

REFUSES_COMPLETION = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON myhealth.turns
    FOR EACH ROW WHEN (NEW.state = 'completed') EXECUTE FUNCTION public.refuse();
"""


async def test_who_is_cancelled_while_reserving_closes_what_may_be_reserved() -> None:
    """The answer is lost, the reservation perhaps not: unclosed it counts until the next claim."""
    asked: list[UUID] = []
    reached = asyncio.Event()

    async def never_answers(call: object, _instead_of: UUID | None) -> int:
        asked.append(call.id)  # pyright: ignore[reportAttributeAccessIssue] - a private class of the account's
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    account = TurnAccount(never_answers)
    reserving = asyncio.create_task(account.reserve(REQUEST))
    await reached.wait()
    reserving.cancel()
    await asyncio.gather(reserving, return_exceptions=True)
    end = account.close()
    assert end is not None
    assert (end.call_id, end.state) == (asked[0], "released")


async def test_what_is_over_budget_leaves_nothing_to_close() -> None:
    async def refuses(_call: object, _instead_of: UUID | None) -> int:
        raise OverBudget("user_day", None)

    account = TurnAccount(refuses)
    with pytest.raises(OverBudget):
        await account.reserve(REQUEST)
    assert account.close() is None


async def test_a_call_that_ended_well_in_a_turn_that_fails_is_counted_whole(
    fleet: Fleet, database_url: str
) -> None:
    """The next prompt is bounded by what this one was: were it of no tokens, the bound would be too small."""
    machine = await fleet.machine()
    session = await fleet.session(machine)
    async with superuser(database_url) as other:
        await other.execute(REFUSES_COMPLETION)
    turn = await fleet.send(machine, session, "hello")
    events = await fleet.until_end(machine, session)
    assert kind(events[-1]) == "RUN_ERROR"
    async with superuser(database_url) as reader:
        row = await reader.fetchrow(
            "SELECT c.state, c.prompt_tokens, c.charged, t.model_calls, t.cost_usd_micros"
            " FROM myhealth.model_calls c JOIN myhealth.turns t ON t.id = c.turn_id WHERE t.id = $1",
            turn,
        )
        known = await reader.fetchval("SELECT prompt_tokens FROM myhealth.sessions WHERE id = $1", session)
    assert row is not None
    state, tokens, charged, calls, cost = row
    assert (state, calls, cost) == ("settled", 1, charged)
    assert tokens > 0
    assert known == tokens
