from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.tools.trend import MIN_POINTS, trend

VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=MIN_POINTS, max_size=30)


def points(values: list[float]) -> list[tuple[float, float]]:
    return [(float(x), y) for x, y in enumerate(values)]


def test_a_straight_line_is_found() -> None:
    found = trend(points([10.0, 12, 14, 16, 18, 20]))
    assert found == (2, 10, 20, "rising")


def test_one_odd_week_does_not_bend_the_line() -> None:
    found = trend(points([10.0, 12, 14, 900, 18, 20, 22, 24]))
    assert found.slope == pytest.approx(2, abs=0.1)


def test_ups_and_downs_are_no_trend() -> None:
    assert trend(points([5.0, 9, 4, 8, 5, 9, 4, 8])).direction == "no clear trend"


def test_what_stays_the_same_is_no_trend() -> None:
    assert trend(points([3.0] * 8)) == (0, 3, 3, "no clear trend")


def test_gaps_count_by_their_length() -> None:
    found = trend([(0, 0.0), (1, 1.0), (2, 2.0), (10, 10.0), (11, 11.0)])
    assert (found.slope, found.end) == (1, 11)


def test_the_test_is_at_five_percent() -> None:
    # n = 5: variance 5 * 4 * 15 / 18. S = 10 gives z = 9 / 4.08 = 2.20; one pair reversed: 7 / 4.08 = 1.71.
    assert trend(points([5.0, 4, 3, 2, 1])).direction == "falling"
    assert trend(points([5.0, 4, 3, 1, 2])).direction == "no clear trend"


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 5 points"):
        trend(points([1.0, 2, 3, 4]))


@given(VALUES)
def test_turned_upside_down_it_turns(values: list[float]) -> None:
    up, down = trend(points(values)), trend(points([-value for value in values]))
    assert down.slope == -up.slope
    opposite = {"rising": "falling", "falling": "rising", "no clear trend": "no clear trend"}
    assert down.direction == opposite[up.direction]


@given(VALUES, st.integers(-1000, 1000))
def test_lifted_it_keeps_its_slope(values: list[float], lift: int) -> None:
    plain, lifted = trend(points(values)), trend(points([value + lift for value in values]))
    assert lifted.slope == plain.slope
    assert lifted.direction == plain.direction
