"""When a call is made again, and how long is waited."""

from __future__ import annotations

import pytest

from agent_backend.engines.limits import Retries, RetryPolicy, TransientError


def waits(policy: RetryPolicy, *errors: TransientError, random: float = 1.0) -> list[float | None]:
    retries = Retries(policy, lambda: random)
    return [retries.wait_after(error) for error in errors]


def failed(retry_after: float | None = None) -> TransientError:
    return TransientError("provider_overloaded", "", retry_after=retry_after)


def test_waits_grow_up_to_the_cap_and_attempts_end() -> None:
    policy = RetryPolicy(attempts=5, base=1.0, cap=3.0, budget=100.0)
    assert waits(policy, *[failed()] * 5) == [1.0, 2.0, 3.0, 3.0, None]


@pytest.mark.parametrize("random", [0.0, 0.25])
def test_jitter_spreads_the_whole_wait(random: float) -> None:
    policy = RetryPolicy(attempts=3, base=1.0, cap=8.0)
    assert waits(policy, failed(), failed(), random=random) == [random, 2 * random]


def test_retry_after_is_waited_in_full() -> None:
    policy = RetryPolicy(base=0.5)
    assert waits(policy, failed(7.0), random=0.5) == [7.25]


def test_a_retry_after_beyond_the_budget_ends_the_call_at_once() -> None:
    assert waits(RetryPolicy(budget=30.0), failed(3600.0)) == [None]


def test_the_budget_is_for_all_waits_together() -> None:
    policy = RetryPolicy(attempts=10, base=0.0, budget=10.0)
    assert waits(policy, failed(4.0), failed(4.0), failed(4.0)) == [4.0, 4.0, None]
