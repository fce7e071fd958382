"""The laws of states: no illegal move, terminal means terminal, and each refusal as the API words it."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.errors import StateError
from fly_emulator.machines import states
from fly_emulator.machines.states import PERSISTENT, TERMINAL, TRANSITIONS, Operation
from fly_emulator.ports import State

ALL: tuple[State, ...] = get_args(State)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


def test_every_state_has_its_moves() -> None:
    assert set(TRANSITIONS) == set(ALL)


@given(st.sampled_from(ALL), st.sampled_from(ALL))
def test_only_listed_moves_pass(current: State, target: State) -> None:
    if target in TRANSITIONS[current]:
        states.check_move(current, target)
    else:
        with pytest.raises(StateError) as caught:
            states.check_move(current, target)
        assert caught.value.status == 500


@given(st.data())
def test_any_walk_ends_only_in_terminal_states(data: st.DataObject) -> None:
    current: State = "creating"
    for _ in range(20):
        moves: list[State] = sorted(TRANSITIONS[current])
        if not moves:
            assert current in TERMINAL
            return
        current = data.draw(st.sampled_from(moves))


@pytest.mark.parametrize("state", sorted(set(ALL) - TERMINAL))
def test_every_machine_can_be_destroyed_from_anywhere(state: State) -> None:
    reached: list[State] = [state]
    for source in reached:
        reached.extend(TRANSITIONS[source].difference(reached))
    assert "destroyed" in reached


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_states_admit_no_change(state: State) -> None:
    for operation in OPERATIONS:
        if operation == "destroy" and state == "destroyed":
            assert not states.admit(operation, state)
            continue
        with pytest.raises(StateError) as caught:
            states.admit(operation, state, force=True)
        assert caught.value.status == 412


@given(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(ALL), st.booleans()))
def test_an_operation_is_admitted_needless_or_refused(case: tuple[Operation, State, bool]) -> None:
    operation, state, force = case
    words: list[str] = []
    try:
        states.admit(operation, state, force=force)
    except StateError as error:
        words = [str(error.status), error.problem]
    assert not words or (words[0] == "412" and words[1] == states.refusal(operation, state))


@pytest.mark.parametrize(
    ("operation", "state", "words"),
    [
        ("start", "stopping", "failed_precondition: unable to start machine from current state: 'stopping'"),
        ("start", "replacing", "failed_precondition: machine getting replaced, refusing to start"),
        (
            "suspend",
            "stopped",
            "failed_precondition: unable to suspend machine from current state: 'stopped'",
        ),
        (
            "restart",
            "stopped",
            "failed_precondition: unable to restart machine from current state: 'stopped'",
        ),
        (
            "destroy",
            "started",
            (
                "failed_precondition: unable to destroy machine, "
                "not currently stopped, suspended, failed or created"
            ),
        ),
    ],
)
def test_words_of_refusal(operation: Operation, state: State, words: str) -> None:
    with pytest.raises(StateError) as caught:
        states.admit(operation, state)
    assert caught.value.problem == words


def test_asking_for_what_is_so_is_no_error() -> None:
    assert not states.admit("start", "started")
    assert not states.admit("stop", "stopped")
    assert not states.admit("suspend", "suspended")
    assert not states.admit("destroy", "destroyed")


def test_destroying_what_runs_needs_force() -> None:
    assert states.admit("destroy", "started", force=True)
    assert all(states.admit("destroy", state, force=True) for state in PERSISTENT)
