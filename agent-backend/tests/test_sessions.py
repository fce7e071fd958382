from __future__ import annotations

from itertools import pairwise, product

import asyncpg
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.sessions import FINAL, TRANSITIONS, TurnState, may_go

STATES: tuple[TurnState, ...] = tuple(TRANSITIONS)


async def _turn_that_may_be_in_any_state(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        INSERT INTO myhealth.agent_versions (hash, name, frozen) VALUES ('v', 'coach', '{}');
        INSERT INTO myhealth.sessions (id, user_id, agent, agent_version, body_hash)
            VALUES (gen_random_uuid(), gen_random_uuid(), 'coach', 'v', 'h');
        INSERT INTO myhealth.turns
            (session_id, id, user_id, seq, state, on_busy, body_hash, message_id, content)
            SELECT id, id, user_id, 1, 'queued', 'enqueue', 'h', 'm', '[]' FROM myhealth.sessions;
        """
    )


async def test_the_database_lets_a_turn_go_where_the_table_does_and_nowhere_else(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await _turn_that_may_be_in_any_state(connection)
        for source, target in product(STATES, STATES):
            transaction = connection.transaction()
            await transaction.start()
            # Put there past the trigger, then moved under it.
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute("UPDATE myhealth.turns SET state = $1", source)
            await connection.execute("SET LOCAL session_replication_role = origin")
            try:
                await connection.execute("UPDATE myhealth.turns SET state = $1", target)
                moved = True
            except asyncpg.CheckViolationError:
                moved = False
            await transaction.rollback()
            assert moved == (source == target or may_go(source, target)), (source, target)
            asked = await connection.fetchval("SELECT myhealth.turn_may_go($1, $2)", source, target)
            assert asked == may_go(source, target), (source, target)
    finally:
        await connection.close()


def test_final_states_are_those_nothing_leads_out_of() -> None:
    assert {state for state, targets in TRANSITIONS.items() if not targets} == FINAL


@given(st.lists(st.sampled_from(STATES), max_size=30))
def test_every_legal_walk_ends_at_its_first_final_state(wishes: list[TurnState]) -> None:
    state: TurnState = "queued"
    walked: list[TurnState] = [state]
    for wish in wishes:
        if may_go(state, wish):
            state = wish
            walked.append(state)
    assert all(each not in FINAL for each in walked[:-1])
    # Work is only ever done in `running`, and nothing is parked that did not run.
    for before, after in pairwise(walked):
        assert before != after
        if after.startswith("waiting") or after == "completed":
            assert before == "running"


def test_from_every_state_an_end_can_be_reached() -> None:
    reached = FINAL
    while more := frozenset(state for state in STATES if TRANSITIONS[state] & reached) - reached:
        reached |= more
    assert reached == set(STATES)
