"""What is not saved and who is not served, whatever a model says: bounds of goals, ages; pure.

The numbers and where they come from stand in `guardrails.json`, for a clinician to review.
"""

from __future__ import annotations

import datetime as dt
import functools
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec

GoalKind: TypeAlias = Literal[
    "steps_per_day",
    "active_energy_per_day",
    "exercise_minutes_per_day",
    "sleep_hours_per_night",
    "workouts_per_week",
    "weight",
    "calories_per_day",
]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a number comes from."""

    title: str
    url: str


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Between what a kind of goal must lie. `withheld`: not for users who switched weight and energy off."""

    unit: str
    low: float
    high: float
    sources: list[str]
    low_for_minors: float | None = None
    withheld: bool = False
    adults_only: bool = False
    dated: bool = False
    """It needs a date to be reached by."""


class WeightRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a weight goal must keep to beside its bounds; the smaller of both losses a week counts."""

    minimum_bmi: float
    loss_share_per_week: float
    loss_kg_per_week: float
    weighed_within_days: int
    sources: list[str]


class AgeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In years: below `minimum` nobody is served, below `adult` some goals are refused."""

    minimum: int
    adult: int
    sources: list[str]


class Guardrails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    title: str
    version: str
    reviewed_by: str
    """Who has read and signed this version; empty until somebody qualified has, as is `reviewed_on`."""
    reviewed_on: str
    sources: dict[str, Source]
    age: AgeRule
    goals: dict[GoalKind, Bounds]
    weight: WeightRule
    dated_within_days: int

    def kinds(self, *, withheld: bool = False, adults_only: bool = False) -> list[GoalKind]:
        """Return the kinds of goal that have one of the marks asked for."""
        return [
            kind
            for kind, bounds in self.goals.items()
            if (withheld and bounds.withheld) or (adults_only and bounds.adults_only)
        ]


class WantedGoal(msgspec.Struct, frozen=True, kw_only=True):
    """A goal somebody wants to set. `target` in the kind's unit; `target_date` a day of the user's."""

    kind: GoalKind
    target: float
    target_date: dt.date | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the user at the moment of saving; `weighed_on` is the day of `body_mass_kg`."""

    today: dt.date
    birth_year: int | None = None
    eating_disorder: bool = False
    height_cm: float | None = None
    body_mass_kg: float | None = None
    weighed_on: dt.date | None = None


class Refusal(NamedTuple):
    """Why something is not saved: the field, a stable word, the text, and the bound where there is one."""

    field: Literal["kind", "target", "target_date"]
    code: str
    reason: str
    bound: float | None = None


@functools.cache
def guardrails() -> Guardrails:
    """Return the file's content. Raises msgspec.ValidationError on a file that is wrong."""
    path = Path(__file__).with_name("guardrails.json")
    return msgspec.json.decode(path.read_bytes(), type=Guardrails)


def certain_age(birth_year: int, today: dt.date) -> int:
    """Return the age in years that somebody of this birth year has reached for certain."""
    birthday_is_over = (today.month, today.day) == (12, 31)
    return today.year - birth_year - (0 if birthday_is_over else 1)


def is_minor(birth_year: int | None, today: dt.date) -> bool:
    """Tell whether somebody may be under age; an unknown birth year says no."""
    return birth_year is not None and certain_age(birth_year, today) < guardrails().age.adult


def check(goal: WantedGoal, facts: Facts) -> Refusal | None:
    """Return why the goal must not be saved for this user now, or None."""
    bounds = guardrails().goals[goal.kind]
    return (
        _not_for_this_user(goal.kind, bounds, facts)
        or _out_of_bounds(goal, bounds, facts)
        or _wrong_date(goal, bounds, facts)
        or (_unsafe_weight(goal, facts) if goal.kind == "weight" else None)
    )


def _not_for_this_user(kind: GoalKind, bounds: Bounds, facts: Facts) -> Refusal | None:
    if bounds.withheld and facts.eating_disorder:
        return Refusal("kind", "switched_off", "weight and energy goals are switched off for this user")
    if not bounds.adults_only:
        return None
    adult = guardrails().age.adult
    if facts.birth_year is None:
        return Refusal(
            "kind", "birth_year_unknown", f"{kind} needs the year of birth in the profile", float(adult)
        )
    if is_minor(facts.birth_year, facts.today):
        return Refusal("kind", "adults_only", f"{kind} is not saved for people under {adult}", float(adult))
    return None


def _out_of_bounds(goal: WantedGoal, bounds: Bounds, facts: Facts) -> Refusal | None:
    low, code = bounds.low, "too_low"
    if bounds.low_for_minors is not None and is_minor(facts.birth_year, facts.today):
        low = bounds.low_for_minors
    if goal.kind == "weight" and facts.height_cm is not None:
        # Where the height is known the BMI says it better than any one weight.
        low, code = round(_least_weight(facts.height_cm), 1), "bmi_too_low"
    if not goal.target >= low:
        return Refusal("target", code, f"is below the least that is saved, {low:g} {bounds.unit}", low)
    if goal.target > bounds.high:
        reason = f"is above the most that is saved, {bounds.high:g} {bounds.unit}"
        return Refusal("target", "too_high", reason, bounds.high)
    return None


def _least_weight(height_cm: float) -> float:
    return guardrails().weight.minimum_bmi * (height_cm / 100) ** 2


def _wrong_date(goal: WantedGoal, bounds: Bounds, facts: Facts) -> Refusal | None:
    if goal.target_date is None:
        return (
            Refusal("target_date", "missing", "is missing: this goal needs a day") if bounds.dated else None
        )
    days = (goal.target_date - facts.today).days
    if days < 1:
        return Refusal("target_date", "not_in_future", "is not in the future", 1.0)
    most = guardrails().dated_within_days
    if days > most:
        return Refusal("target_date", "too_far", f"is more than {most} days away", float(most))
    return None


def _unsafe_weight(goal: WantedGoal, facts: Facts) -> Refusal | None:
    """Hold a weight goal against the weight measured last; a loss must leave enough time."""
    rule = guardrails().weight
    assert goal.target_date is not None, "a dated goal has been checked for its date"
    recent = (
        facts.weighed_on is not None and (facts.today - facts.weighed_on).days <= rule.weighed_within_days
    )
    if facts.body_mass_kg is None or not recent:
        reason = f"needs a weight measured in the last {rule.weighed_within_days} days"
        return Refusal("target", "weight_unknown", reason, float(rule.weighed_within_days))
    per_week = min(rule.loss_kg_per_week, rule.loss_share_per_week * facts.body_mass_kg)
    weeks = (goal.target_date - facts.today).days / 7
    if facts.body_mass_kg - goal.target > per_week * weeks + 1e-9:
        reason = f"is too soon: no more than {per_week:.2g} kg a week from {facts.body_mass_kg:.1f} kg"
        return Refusal("target_date", "too_fast", reason, round(per_week, 3))
    return None
