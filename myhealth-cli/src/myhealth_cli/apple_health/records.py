"""One element's attributes -> one sample. Pure; the meaning of Apple's attributes lives here.

Attribute names and value strings are those of real exports ("HealthKit Export Version" 11 to 14).
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache
from typing import Final
from uuid import UUID, uuid5

from myhealth_cli.apple_health.samples import (
    ActivitySummary,
    Device,
    Quantity,
    Sample,
    Sleep,
    Stage,
    Workout,
)
from myhealth_cli.apple_health.units import (
    COUNT,
    ENERGY,
    LENGTH,
    METRICS,
    MINUTES,
    SECONDS,
    Metric,
    UnitError,
    convert,
)
from myhealth_cli.errors import MyHealthError

SLEEP_TYPE: Final = "HKCategoryTypeIdentifierSleepAnalysis"
_NAMESPACE: Final = UUID("6f1c2a52-6a0b-5d43-9a5e-2f1f0f6f4c1e")
_EARLIEST_SUMMARY: Final = date(2014, 1, 1)  # HealthKit's year; exports carry an empty 1969-12-30 or so
_MAX_NOTE, _MAX_SOURCE, _MAX_ACTIVITY = 500, 120, 60  # what the server takes

# Names since iOS 16, the older "Asleep", and the bare numbers some apps write.
_STAGES: Final[dict[str, Stage]] = {
    "HKCategoryValueSleepAnalysisInBed": "in_bed",
    "HKCategoryValueSleepAnalysisAsleep": "asleep",
    "HKCategoryValueSleepAnalysisAsleepUnspecified": "asleep",
    "HKCategoryValueSleepAnalysisAwake": "awake",
    "HKCategoryValueSleepAnalysisAsleepCore": "core",
    "HKCategoryValueSleepAnalysisAsleepDeep": "deep",
    "HKCategoryValueSleepAnalysisAsleepREM": "rem",
    "0": "in_bed",
    "1": "asleep",
    "2": "awake",
    "3": "core",
    "4": "deep",
    "5": "rem",
}
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) ([+-]\d\d):?(\d\d)")
# A phone that overrides its region's 24-hour clock writes "7:05:00 AM", with a narrow no-break space.
_TIME_12H: Final = re.compile(
    r"(\d{4}-\d\d-\d\d) (\d{1,2}):(\d\d:\d\d)[\s\u202f]*([ap])\.?\s?m\.?\s([+-]\d\d):?(\d\d)", re.IGNORECASE
)
_WORDS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


class RecordError(MyHealthError):
    """An element that cannot become a sample; it is counted under `reason` and skipped."""


class Span:
    """A start and an end as the export wrote them, and as instants."""

    __slots__ = ("begin", "end", "finish", "start")

    def __init__(self, attributes: dict[str, str]) -> None:
        self.start, self.begin = parse_time(attributes.get("startDate", ""))
        self.end, self.finish = parse_time(attributes.get("endDate", ""))
        if self.finish < self.begin:
            raise RecordError("ends before it starts")

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return (self.finish - self.begin).total_seconds()

    @property
    def key(self) -> str:
        """The instants, independent of the time zone the phone was in when it exported."""
        return f"{int(self.begin.timestamp())}|{int(self.finish.timestamp())}"


@lru_cache(maxsize=64)  # most records end where they, or the next one, start
def parse_time(text: str) -> tuple[str, datetime]:
    """Give Apple's `2024-03-01 08:00:00 +0100` as (ISO 8601 with offset, aware datetime).

    Raises RecordError.
    """
    match = _TIME.fullmatch(text)
    if match is not None:
        iso = f"{match[1]}T{match[2]}{match[3]}:{match[4]}"
    else:
        match = _TIME_12H.fullmatch(text)
        if match is None:
            raise RecordError("unreadable date")
        hour = int(match[2]) % 12 + (12 if match[4] in "pP" else 0)
        iso = f"{match[1]}T{hour:02}:{match[3]}{match[5]}:{match[6]}"
    try:
        return iso, datetime.fromisoformat(iso)
    except ValueError:
        raise RecordError("impossible date") from None


def classify_device(attributes: dict[str, str]) -> Device:
    """Tell what measured a record, by `productType`, then Apple's `device` text, then the source's name."""
    return _device(
        attributes.get("productType", ""), attributes.get("device", ""), attributes.get("sourceName", "")
    )


@lru_cache(maxsize=256)
def _device(product: str, described: str, name: str) -> Device:
    for text in (f"{product} {described}".lower(), name.lower()):
        if "watch" in text:
            return "watch"
        if "iphone" in text:
            return "phone"
    return "other"


def quantity(attributes: dict[str, str], metric: Metric) -> Quantity:
    """Give a `Record` of one of our metrics. Raises RecordError."""
    span = Span(attributes)
    value = _checked(attributes.get("value", ""), attributes.get("unit", ""), metric)
    source = source_name(attributes)
    return Quantity(
        id=_identify(metric.name, source, span.key, f"{value:.5g}", metric.unit),
        metric=metric.name,
        start=span.start,
        end=span.end,
        value=value,
        unit=metric.unit,
        source=source,
        device=classify_device(attributes),
    )


def sleep(attributes: dict[str, str]) -> Sleep:
    """Give a sleep analysis `Record`. Raises RecordError."""
    span = Span(attributes)
    stage = _STAGES.get(attributes.get("value", ""))
    if stage is None:
        raise RecordError("unknown sleep stage")
    source = source_name(attributes)
    return Sleep(
        id=_identify("sleep", source, span.key, stage),
        stage=stage,
        start=span.start,
        end=span.end,
        source=source,
        device=classify_device(attributes),
    )


class OpenWorkout:
    """A `Workout` whose children are still being read.

    Since iOS 16 energy and distance come as `WorkoutStatistics` children, possibly several rows of one kind
    (one per segment) that add up; before, as attributes of the workout.
    """

    def __init__(self, attributes: dict[str, str]) -> None:
        self.attributes = attributes
        self._sums: dict[Metric, float] = {}
        self._note: str | None = None

    def child(self, name: str, attributes: dict[str, str]) -> None:
        """Take a direct child; those of a nested `WorkoutActivity` repeat what the workout's own say."""
        if name == "MetadataEntry" and attributes.get("key") == "HKWorkoutBrandName":
            self._note = _printable(attributes.get("value", ""))[:_MAX_NOTE] or None
        metric = _statistic(attributes.get("type", "")) if name == "WorkoutStatistics" else None
        if metric is not None and "sum" in attributes:
            with suppress(UnitError):  # a row we cannot read does not cost the workout
                value = convert(attributes["sum"], attributes.get("unit", ""), metric)
                self._sums[metric] = self._sums.get(metric, 0.0) + value

    def close(self) -> Workout:
        """Give the sample. Raises RecordError."""
        attributes = self.attributes
        span = Span(attributes)
        source = source_name(attributes)
        activity = activity_name(attributes.get("workoutActivityType", ""))
        return Workout(
            id=_identify("workout", source, span.key, activity),
            activity=activity,
            start=span.start,
            end=span.end,
            duration_s=_optional(attributes, "duration", SECONDS, "min") or span.seconds,
            energy_kcal=self._sums.get(ENERGY, _optional(attributes, "totalEnergyBurned", ENERGY, "kcal")),
            distance_m=self._sums.get(LENGTH, _optional(attributes, "totalDistance", LENGTH, "km")),
            source=source,
            device=classify_device(attributes),
            note=self._note,
        )


def activity_summary(attributes: dict[str, str]) -> ActivitySummary:
    """Give an `ActivitySummary`; its day identifies it, so a later export updates it. Raises RecordError."""
    text = attributes.get("dateComponents", "")
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise RecordError("unreadable date") from None
    if day < _EARLIEST_SUMMARY:
        raise RecordError("impossible date")
    unit = attributes.get("activeEnergyBurnedUnit", "kcal")

    def read(name: str, given: str, metric: Metric) -> float:
        return _checked(attributes.get(name, "0"), given, metric)

    return ActivitySummary(
        id=_identify("activity_summary", day.isoformat()),
        date=day.isoformat(),
        active_energy_kcal=read("activeEnergyBurned", unit, ENERGY),
        exercise_minutes=round(read("appleExerciseTime", "min", MINUTES)),
        stand_hours=round(read("appleStandHours", "count", COUNT)),
        active_energy_goal_kcal=read("activeEnergyBurnedGoal", unit, ENERGY),
    )


def activity_name(kind: str) -> str:
    """Give `HKWorkoutActivityTypeTraditionalStrengthTraining` as `traditional_strength_training`."""
    words = _WORDS.findall(kind.removeprefix("HKWorkoutActivityType"))
    return "_".join(words).lower()[:_MAX_ACTIVITY] if words and "rawValue" not in kind else "other"


def source_name(attributes: dict[str, str]) -> str:
    """Give the source's name; iOS puts a no-break space into "Apple Watch", which would split sources."""
    return _printable(attributes.get("sourceName", ""))[:_MAX_SOURCE] or "unknown"


def record(attributes: dict[str, str]) -> Sample | None:
    """Give the sample of a `Record`, or None when its type is none of ours. Raises RecordError."""
    kind = attributes.get("type", "")
    metric = METRICS.get(kind)
    if metric is not None:
        return quantity(attributes, metric)
    return sleep(attributes) if kind == SLEEP_TYPE else None


@lru_cache(maxsize=256)
def _printable(text: str) -> str:
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def _identify(*parts: str) -> UUID:
    # Canonical unit, instants and 5 digits: an export after a change of units or time zone gives the same id.
    return uuid5(_NAMESPACE, "\x1f".join(parts))


def _checked(value: str, unit: str, metric: Metric) -> float:
    try:
        return convert(value, unit, metric)
    except UnitError as error:
        raise RecordError(str(error)) from error


def _optional(attributes: dict[str, str], name: str, metric: Metric, default_unit: str) -> float | None:
    text = attributes.get(name)
    return None if text is None else _checked(text, attributes.get(f"{name}Unit", default_unit), metric)


def _statistic(kind: str) -> Metric | None:
    if kind == "HKQuantityTypeIdentifierActiveEnergyBurned":
        return ENERGY
    return LENGTH if kind.startswith("HKQuantityTypeIdentifierDistance") else None
