"""The health samples of `PUT /v1/health/samples`, as msgspec structs that encode to its JSON.

Times are ISO 8601 with the offset the export gave; ids are UUIDs derived from what identifies the
sample, so that importing the same export twice changes nothing.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

Device: TypeAlias = Literal["watch", "phone", "other"]
Stage: TypeAlias = Literal["in_bed", "awake", "core", "deep", "rem", "asleep"]


class Quantity(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="quantity", tag_field="kind"):
    """A measured number over `[start, end)`; `value` is in the metric's canonical `unit`."""

    id: UUID
    metric: str
    start: str
    end: str
    value: float
    unit: str
    source: str
    device: Device

    @property
    def label(self) -> str:
        """What this sample is counted under."""
        return self.metric


class Sleep(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="sleep", tag_field="kind"):
    """One stretch of one sleep stage."""

    id: UUID
    stage: Stage
    start: str
    end: str
    source: str
    device: Device

    @property
    def label(self) -> str:
        """What this sample is counted under."""
        return "sleep"


class Workout(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="workout", tag_field="kind"):
    """A workout; `duration_s` excludes pauses, so it may be shorter than `end - start`."""

    id: UUID
    activity: str
    start: str
    end: str
    duration_s: float
    energy_kcal: float | None
    distance_m: float | None
    source: str
    device: Device
    note: str | None

    @property
    def label(self) -> str:
        """What this sample is counted under."""
        return "workout"


class ActivitySummary(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="activity_summary", tag_field="kind"
):
    """The rings of one local day (`date` is YYYY-MM-DD)."""

    id: UUID
    date: str
    active_energy_kcal: float
    exercise_minutes: int
    stand_hours: int
    active_energy_goal_kcal: float

    @property
    def label(self) -> str:
        """What this sample is counted under."""
        return "activity_summary"


Sample: TypeAlias = Quantity | Sleep | Workout | ActivitySummary
