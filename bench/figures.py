"""The figures: their keys, units and goals (the design's "Figures to reach")."""

from __future__ import annotations

from statistics import median
from typing import Literal, NamedTuple, TypeAlias

Part: TypeAlias = Literal["boot", "idle", "stream", "crowd", "short", "wake", "reconnect", "open"]


class Figure(NamedTuple):
    """One line of the table, and its goal: a limit, a factor beside the floor, or both."""

    key: str
    unit: str
    part: Part
    limit: float | None = None
    """The most it may be, or the least where `more_is_better`."""
    factor: float | None = None
    """The most it may be as a multiple of the floor's."""
    boots: float | None = None
    """The most it may be as a multiple of our own boot in the same run."""
    above_boot: float | None = None
    """The most it may be above our own boot in the same run."""
    more_is_better: bool = False

    @property
    def goal(self) -> str:
        """The goal in words."""
        limit = "" if self.limit is None else f"{'>=' if self.more_is_better else '<='} {self.limit:g}"
        factor = "" if self.factor is None else f"<= {self.factor:g}x"
        boots = "" if self.boots is None else f"<= {self.boots:g}x boot"
        above = "" if self.above_boot is None else f"<= boot + {self.above_boot:g}"
        return ", ".join(filter(None, [limit, factor, boots, above]))

    def reached(self, ours: float, floor: float, boot: float | None) -> bool:
        """Say whether the medians reach the goal; `boot` is our own boot in the same run."""
        within = self.limit is None or (ours >= self.limit if self.more_is_better else ours <= self.limit)
        if self.boots is not None:
            within = within and boot is not None and ours <= self.boots * boot
        if self.above_boot is not None:
            within = within and boot is not None and ours <= boot + self.above_boot
        return within and (self.factor is None or ours <= self.factor * floor)


FIGURES: tuple[Figure, ...] = (
    Figure("boot_ready_ms", "ms", "boot", limit=500, factor=2),
    Figure("idle_pss_mb", "MB", "idle", limit=75),
    Figure("stream_cpu_ms_per_1k", "ms", "stream", factor=1.5),
    Figure("crowd_cpu_ms_per_1k", "ms", "crowd", limit=100),
    Figure("crowd_p99_ms", "ms", "crowd", limit=100, factor=2),
    Figure("crowd_pss_mb", "MB", "crowd", limit=256),
    Figure("short_turns_per_s", "1/s", "short", limit=250, more_is_better=True),
    Figure("added_ttft_p50_ms", "ms", "stream", limit=10),
    Figure("wake_ready_ms", "ms", "wake", boots=1.2),
    Figure("wake_first_token_ms", "ms", "wake", above_boot=150),
    Figure("wake_suspended_first_token_ms", "ms", "wake"),
    Figure("reconnect_lost_events", "events", "reconnect", limit=0),
    Figure("streams_per_gb", "streams", "open", more_is_better=True),
)


class Samples:
    """Values of every figure and side, one per round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, key: str, side: str, value: float) -> None:
        """Note a value."""
        self._values.setdefault((key, side), []).append(value)

    def has(self, key: str) -> bool:
        """Say whether both sides of a figure were measured."""
        return (key, "ours") in self._values and (key, "floor") in self._values

    def median(self, key: str, side: str) -> float:
        """Return the median over the rounds."""
        return median(self._values[key, side])

    def spread(self, key: str, side: str) -> float:
        """Return how far the rounds lie apart, as a share of the median."""
        values, middle = self._values[key, side], self.median(key, side)
        return (max(values) - min(values)) / abs(middle) if middle else 0.0
