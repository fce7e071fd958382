"""Bounds of goals: what is saved is never outside them, whatever is asked for and whoever asks."""

from __future__ import annotations

import datetime as dt
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.guardrails import (
    Facts,
    GoalKind,
    WantedGoal,
    certain_age,
    check,
    guardrails,
    is_minor,
)

TODAY = dt.date(2026, 5, 10)
ADULT = Facts(today=TODAY, birth_year=1985, body_mass_kg=80, weighed_on=dt.date(2026, 5, 9))
SOON = dt.date(2026, 7, 5)
KINDS: tuple[GoalKind, ...] = get_args(GoalKind)


def known(**more: Any) -> Facts:
    return msgspec.structs.replace(ADULT, **more)


def refused(kind: GoalKind, target: float, facts: Facts = ADULT, date: dt.date | None = None) -> str | None:
    told = check(WantedGoal(kind=kind, target=target, target_date=date), facts)
    return None if told is None else f"{told.field} {told.code} {told.bound}"


def test_every_number_has_a_source() -> None:
    rails = guardrails()
    assert set(rails.goals) == set(KINDS)
    cited = [rails.age.sources, rails.weight.sources, *(bounds.sources for bounds in rails.goals.values())]
    assert all(cited)
    assert {name for names in cited for name in names} == set(rails.sources)
    assert all(source.url.startswith("https://") for name, source in rails.sources.items() if name != "own")


@pytest.mark.parametrize(
    ("kind", "target", "reason"),
    [
        ("steps_per_day", 8000, None),
        ("steps_per_day", 30001, "target too_high 30000.0"),
        ("exercise_minutes_per_day", 181, "target too_high 180.0"),
        ("active_energy_per_day", 1501, "target too_high 1500.0"),
        ("sleep_hours_per_night", 7, None),
        ("sleep_hours_per_night", 6.9, "target too_low 7.0"),
        ("workouts_per_week", 11, "target too_high 10.0"),
        ("calories_per_day", 1500, None),
        ("calories_per_day", 1499, "target too_low 1500.0"),
        ("calories_per_day", float("nan"), "target too_low 1500.0"),
        ("calories_per_day", float("inf"), "target too_high 5000.0"),
    ],
)
def test_bounds(kind: GoalKind, target: float, reason: str | None) -> None:
    assert refused(kind, target) == reason


@pytest.mark.parametrize(
    ("target", "facts", "date", "reason"),
    [
        (76, ADULT, SOON, None),
        (76, ADULT, None, "target_date missing None"),
        (76, ADULT, TODAY, "target_date not_in_future 1.0"),
        (76, ADULT, dt.date(2028, 5, 10), "target_date too_far 730.0"),
        (73.6, ADULT, SOON, None),  # 6.4 kg in eight weeks: one percent of 80 kg a week
        (73.5, ADULT, SOON, "target_date too_fast 0.8"),
        (112, known(body_mass_kg=120.0), SOON, None),  # a kilogram a week is less than one percent
        (111.9, known(body_mass_kg=120.0), SOON, "target_date too_fast 1.0"),
        (90, ADULT, SOON, None),
        (44.9, known(body_mass_kg=46.0), SOON, "target too_low 45.0"),
        (53.4, known(body_mass_kg=55.0, height_cm=170.0), SOON, "target bmi_too_low 53.5"),
        (53.5, known(body_mass_kg=55.0, height_cm=170.0), SOON, None),
        (76, known(body_mass_kg=None, weighed_on=None), SOON, "target weight_unknown 60.0"),
        (76, known(weighed_on=dt.date(2026, 3, 10)), SOON, "target weight_unknown 60.0"),
        (76, known(eating_disorder=True), SOON, "kind switched_off None"),
        (76, known(birth_year=None), SOON, "kind birth_year_unknown 18.0"),
        (76, known(birth_year=2008), SOON, "kind adults_only 18.0"),
        (76, known(birth_year=2007), SOON, None),
    ],
)
def test_a_weight_goal(target: float, facts: Facts, date: dt.date | None, reason: str | None) -> None:
    assert refused("weight", target, facts, date) == reason


def test_minors_sleep_longer_and_may_walk() -> None:
    young = known(birth_year=2009)
    assert refused("sleep_hours_per_night", 7.5, young) == "target too_low 8.0"
    assert refused("sleep_hours_per_night", 7.5) is None
    assert refused("steps_per_day", 8000, young) is None


def test_an_age_counts_when_everybody_of_the_year_has_reached_it() -> None:
    assert certain_age(2008, dt.date(2026, 12, 30)) == 17
    assert certain_age(2008, dt.date(2026, 12, 31)) == 18
    assert is_minor(2008, TODAY)
    assert not is_minor(None, TODAY)


@given(
    kind=st.sampled_from(KINDS),
    target=st.floats(allow_nan=True, allow_infinity=True),
    days=st.none() | st.integers(-1000, 1000),
    birth_year=st.none() | st.integers(1900, 2026),
    flag=st.booleans(),
    height=st.none() | st.floats(100, 250),
    mass=st.none() | st.floats(0, 1000),
    weighed=st.integers(0, 200),
)
def test_what_is_saved_lies_within_the_floors(
    kind: GoalKind,
    target: float,
    days: int | None,
    birth_year: int | None,
    flag: bool,  # noqa: FBT001 - hypothesis passes it by name
    height: float | None,
    mass: float | None,
    weighed: int,
) -> None:
    facts = Facts(
        today=TODAY,
        birth_year=birth_year,
        eating_disorder=flag,
        height_cm=height,
        body_mass_kg=mass,
        weighed_on=TODAY - dt.timedelta(days=weighed),
    )
    date = None if days is None else TODAY + dt.timedelta(days=days)
    if check(WantedGoal(kind=kind, target=target, target_date=date), facts) is not None:
        return
    assert 0 < target <= 30_000
    if kind in ("weight", "calories_per_day", "active_energy_per_day"):
        assert not flag
    if kind in ("weight", "calories_per_day"):
        assert birth_year is not None
        assert birth_year <= 2007
    if kind == "calories_per_day":
        assert target >= 1500
    if kind == "weight":
        assert mass is not None
        assert days is not None
        assert target >= (45 if height is None else 18.45 * (height / 100) ** 2)
        assert (mass - target) / (days / 7) <= min(1.0, mass / 100) + 1e-6
