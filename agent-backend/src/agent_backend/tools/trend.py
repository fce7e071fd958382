"""Trends, told honestly: robust, with a test of whether there is one at all. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, groupby
from typing import Literal, NamedTuple, TypeAlias

Direction: TypeAlias = Literal["rising", "falling", "no clear trend"]

MIN_POINTS = 5
"""With fewer, not even a strictly rising series passes the test at 5 %."""
_Z_AT_5_PERCENT = 1.96


class Trend(NamedTuple):
    """A line through points: `slope` per unit of x, `start` and `end` its values at the first and last x."""

    slope: float
    start: float
    end: float
    direction: Direction


def trend(points: list[tuple[float, float]]) -> Trend:
    """Return the trend of (x, y) points with distinct, ascending x.

    Slope and intercept are Theil-Sen's (medians of all pairwise slopes and of the residuals), so that a few
    odd weeks do not bend the line; the direction is only named where the Mann-Kendall test (two-sided, normal
    approximation with continuity correction, corrected for ties) rejects "no trend" at 5 %.
    Raises ValueError with fewer than MIN_POINTS points.
    """
    if len(points) < MIN_POINTS:
        raise ValueError(f"a trend needs {MIN_POINTS} points")
    slope = _median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    intercept = _median(y - slope * x for x, y in points)
    start, end = (intercept + slope * points[at][0] for at in (0, -1))
    return Trend(slope, start, end, _direction([y for _, y in points]))


def _median(values: Iterable[float]) -> float:
    # The standard library's statistics module costs the boot several milliseconds.
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _direction(values: list[float]) -> Direction:
    """Apply Mann-Kendall: do later values tend to be above earlier ones."""
    n = len(values)
    s = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ties = [len(list(group)) for _, group in groupby(sorted(values))]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance <= 0 or (abs(s) - 1) / math.sqrt(variance) < _Z_AT_5_PERCENT:
        return "no clear trend"
    return "rising" if s > 0 else "falling"
