"""Samples as clients upload them: types, checks that need more than one field, and the batch's row form.

Shapes and simple ranges are msgspec's business; `check` does the rest and names the field. All of this runs
on the event loop between streams, so a full batch must stay well under 20 ms.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from agent_backend.db.metrics import METRICS, MetricName
from agent_backend.errors import FieldError, InvalidRequest

MAX_SAMPLES = 2000
MAX_DURATION = dt.timedelta(days=7)
EARLIEST = dt.datetime(1900, 1, 1, tzinfo=dt.UTC)
_MAX_ERRORS = 20
_LEAST = 1e-30
"""Less is nothing: Postgres fails on divisions that underflow, and the days would be unreadable."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_NOTE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Device: TypeAlias = Literal["watch", "phone", "other"]
Stage: TypeAlias = Literal["in_bed", "awake", "core", "deep", "rem", "asleep"]
Moment: TypeAlias = Annotated[dt.datetime, Meta(tz=True, description="ISO 8601 with offset")]
SourceName: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=120, description="No control characters")
]
Amount: TypeAlias = Annotated[float, Meta(ge=0, le=1e7)]


class _Sample(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", gc=False
):
    """What all kinds share. The client makes the id; it is scoped to the user and the kind."""

    id: UUID


class _Measured(_Sample, frozen=True, kw_only=True):
    """Something a source measured from `start` to `end`."""

    start: Moment
    end: Moment
    source: SourceName
    device: Device


class QuantitySample(_Measured, frozen=True, kw_only=True, tag="quantity", gc=False):
    """A value over an interval; `unit` is the metric's own or one that converts to it."""

    metric: MetricName
    value: Annotated[float, Meta(ge=-1e7, le=1e10)]
    unit: Annotated[str, Meta(min_length=1, max_length=20)]


class SleepSample(_Measured, frozen=True, kw_only=True, tag="sleep", gc=False):
    """A stretch in one stage; `asleep` is sleep whose stage is not known."""

    stage: Stage


class WorkoutSample(_Measured, frozen=True, kw_only=True, tag="workout", gc=False):
    """A workout; `duration_s` leaves out pauses."""

    activity: Annotated[str, Meta(min_length=1, max_length=60)]
    duration_s: Annotated[float, Meta(ge=0, le=604_800)]
    energy_kcal: Annotated[float, Meta(ge=0, le=1e5)] | None = None
    distance_m: Annotated[float, Meta(ge=0, le=1e7)] | None = None
    note: Annotated[str, Meta(max_length=500)] | None = None


class ActivitySummary(_Sample, frozen=True, kw_only=True, tag="activity_summary", gc=False):
    """A day's rings; the newest upload of a date is believed."""

    date: dt.date
    active_energy_kcal: Amount | None = None
    exercise_minutes: Annotated[float, Meta(ge=0, le=1500)] | None = None
    stand_hours: Annotated[float, Meta(ge=0, le=25)] | None = None
    active_energy_goal_kcal: Amount | None = None


Sample: TypeAlias = QuantitySample | SleepSample | WorkoutSample | ActivitySummary


class _Source(msgspec.Struct, frozen=True):
    name: str
    device: Device


class _QuantityRow(msgspec.Struct, frozen=True, gc=False):
    id: UUID
    m: int
    s: int
    a: dt.datetime
    b: dt.datetime
    v: float


class _SleepRow(msgspec.Struct, frozen=True, gc=False):
    id: UUID
    s: int
    a: dt.datetime
    b: dt.datetime
    stage: Stage


class _WorkoutRow(msgspec.Struct, frozen=True, gc=False):
    id: UUID
    s: int
    a: dt.datetime
    b: dt.datetime
    duration_s: float
    energy_kcal: float | None
    distance_m: float | None
    activity: str
    note: str | None


class Rows(msgspec.Struct):
    """Checked samples, each id once, as `myhealth.health_store` takes them."""

    sources: list[_Source] = []
    quantities: list[_QuantityRow] = []
    sleep: list[_SleepRow] = []
    workouts: list[_WorkoutRow] = []
    summaries: list[ActivitySummary] = []


class Batch(NamedTuple):
    """Rows to store, and how many samples of the batch were followed by another with their id."""

    rows: Rows
    received: int
    repeated_same: int
    repeated_other: int


class _HasId(Protocol):
    @property
    def id(self) -> UUID: ...


_Row = TypeVar("_Row", bound=_HasId)


class _Checker:
    """Collects what is wrong with a batch, and each source's place in it."""

    def __init__(self, now: dt.datetime) -> None:
        self.errors: list[FieldError] = []
        self.latest = now + dt.timedelta(days=1)
        self.latest_date = (now + dt.timedelta(days=2)).date()
        self.sources: dict[tuple[str, Device], int] = {}
        self.index = 0
        self.repeated_same = 0
        self.repeated_other = 0

    def keep(self, rows: dict[UUID, _Row], row: _Row) -> None:
        """Let the later of two rows with one id stand."""
        earlier = rows.get(row.id)
        if earlier is not None:
            self.repeated_same += earlier == row
            self.repeated_other += earlier != row
        rows[row.id] = row

    def fail(self, field: str, reason: str) -> None:
        self.errors.append(FieldError(f"$.samples[{self.index}].{field}", reason))

    def text(self, field: str, value: str, forbidden: re.Pattern[str] = _CONTROL) -> None:
        if forbidden.search(value):
            self.fail(field, "contains control characters")
        elif not value.strip():
            self.fail(field, "is blank")

    def source(self, sample: _Measured) -> int:
        """Check times and source; return the source's place."""
        if sample.start < EARLIEST:
            self.fail("start", "is before 1900")
        elif sample.end > self.latest:
            self.fail("end", "is more than a day in the future")
        elif sample.end < sample.start:
            self.fail("end", "is before the start")
        elif sample.end - sample.start > MAX_DURATION:
            self.fail("end", "is more than 7 days after the start")
        key = (sample.source, sample.device)
        place = self.sources.get(key)
        if place is None:
            self.text("source", sample.source)
            place = self.sources[key] = len(self.sources)
        return place

    def quantity(self, sample: QuantitySample) -> _QuantityRow:
        place = self.source(sample)
        metric = METRICS[sample.metric]
        value = sample.value if sample.unit == metric.unit else metric.convert(sample.value, sample.unit)
        if value is None:
            accepted = ", ".join([metric.unit, *metric.conversions])
            self.fail("unit", f"does not fit {metric.name}: {accepted}")
            value = 0.0
        elif not 0 <= value <= metric.maximum:
            self.fail("value", f"is not between 0 and {metric.maximum:g} {metric.unit}")
        elif value < _LEAST:
            value = 0.0
        return _QuantityRow(sample.id, metric.id, place, sample.start, sample.end, value)

    def sleep(self, sample: SleepSample) -> _SleepRow:
        return _SleepRow(sample.id, self.source(sample), sample.start, sample.end, sample.stage)

    def workout(self, sample: WorkoutSample) -> _WorkoutRow:
        place = self.source(sample)
        self.text("activity", sample.activity)
        if sample.note and _CONTROL_IN_NOTE.search(sample.note):
            self.fail("note", "contains control characters")
        return _WorkoutRow(
            sample.id,
            place,
            sample.start,
            sample.end,
            sample.duration_s,
            sample.energy_kcal,
            sample.distance_m,
            sample.activity,
            sample.note,
        )

    def summary(self, sample: ActivitySummary) -> ActivitySummary:
        if not EARLIEST.date() <= sample.date <= self.latest_date:
            self.fail("date", "is before 1900 or in the future")
        return sample


def check(samples: list[Sample], now: dt.datetime) -> Batch:
    """Return the samples as rows, in canonical units.

    Where an id comes twice in one kind the later one stands; `now` bounds what may lie in the future.
    Raises InvalidRequest naming each wrong field (at most 20) by its index, as `$.samples[17].value`.
    """
    checker = _Checker(now)
    quantities: dict[UUID, _QuantityRow] = {}
    sleep: dict[UUID, _SleepRow] = {}
    workouts: dict[UUID, _WorkoutRow] = {}
    summaries: dict[UUID, ActivitySummary] = {}
    for index, sample in enumerate(samples):
        checker.index = index
        match sample:
            case QuantitySample():
                checker.keep(quantities, checker.quantity(sample))
            case SleepSample():
                checker.keep(sleep, checker.sleep(sample))
            case WorkoutSample():
                checker.keep(workouts, checker.workout(sample))
            case ActivitySummary():
                checker.keep(summaries, checker.summary(sample))
        if len(checker.errors) >= _MAX_ERRORS:
            break
    if checker.errors:
        first = checker.errors[0]
        raise InvalidRequest(f"{first.field}: {first.reason}", errors=tuple(checker.errors))
    rows = Rows(
        sources=[_Source(*key) for key in checker.sources],
        quantities=list(quantities.values()),
        sleep=list(sleep.values()),
        workouts=list(workouts.values()),
        summaries=list(summaries.values()),
    )
    return Batch(rows, len(samples), checker.repeated_same, checker.repeated_other)
