"""The restart policies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.machine_config import Restart
from fly_emulator.machines.restarts import Restarts

ON_FAILURE = Restart()


def test_the_default_is_ten_times_in_five_minutes() -> None:
    restarts = Restarts(300.0)
    for second in range(10):
        assert restarts.refusal(ON_FAILURE, 1, float(second)) is None
        restarts.note(float(second))
    assert restarts.refusal(ON_FAILURE, 1, 10.0) == "machine has reached its max restart count of 10"
    assert restarts.refusal(ON_FAILURE, 1, 300.0) is None
    restarts.clear()
    assert len(restarts) == 0


def test_a_clean_exit_is_left_alone_and_no_is_no() -> None:
    restarts = Restarts(300.0)
    assert restarts.refusal(ON_FAILURE, 0, 0.0) == "machine exited with exit code 0, not restarting"
    policy = Restart(policy="no")
    assert restarts.refusal(policy, -9, 0.0) == "machine exited with exit code 137, not restarting"
    assert restarts.refusal(Restart(policy="always"), 0, 0.0) is None


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(0, 5))
def test_never_more_than_allowed_in_any_window(gaps: list[float], allowed: int) -> None:
    restarts, now, done = Restarts(60.0), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if restarts.refusal(Restart(max_retries=allowed), 1, now) is None:
            restarts.note(now)
            done.append(now)
    for begin in done:
        assert sum(begin <= moment < begin + 60.0 for moment in done) <= allowed
