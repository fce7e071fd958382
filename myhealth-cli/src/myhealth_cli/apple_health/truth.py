"""What really happened: a seeded person's life, minute by minute, before any device has seen it.

The timeline is the independent side of the generator. Devices observe it (`observe`), the activity
summaries are sums over it (`generate`); neither is computed from the other. All times are whole minutes
since the epoch in UTC; local time is looked up, so DST days and journeys need no special case.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

State: TypeAlias = Literal["sleep", "rest", "light", "walk", "brisk", "run", "ride", "strength"]
SleepStage: TypeAlias = Literal["awake", "core", "deep", "rem"]

HOME: Final = "Europe/Berlin"
BASAL_KCAL: Final = 0.98  # per minute
_LANDING: Final = 14 * 60  # on a travel day the clock changes at 14:00 of the old zone


class Gait(NamedTuple):
    """A state's means per minute: active energy (kcal), steps, metres, flights, and pulse above resting."""

    energy: float
    steps: float
    metres: float
    flights: float
    pulse: float


GAITS: Final[dict[State, Gait]] = {
    "sleep": Gait(0.0, 0, 0, 0, -2),
    "rest": Gait(0.09, 0, 0, 0, 10),
    "light": Gait(0.9, 16, 10, 0.01, 24),
    "walk": Gait(3.5, 104, 76, 0.02, 38),
    "brisk": Gait(4.9, 118, 96, 0.03, 56),
    "run": Gait(10.5, 163, 164, 0.01, 96),
    "ride": Gait(7.4, 0, 0, 0, 74),
    "strength": Gait(4.6, 5, 2, 0, 52),
}
EXERCISE: Final[frozenset[State]] = frozenset({"brisk", "run", "ride", "strength"})
SITTING: Final[frozenset[State]] = frozenset({"sleep", "rest"})


class Trip(NamedTuple):
    """A journey: out on day `first`, back on day `last` (indices into the timeline)."""

    first: int
    last: int
    zone: str


class Bout(NamedTuple):
    """A stretch of one activity, in minutes UTC; `workout` is the name it was recorded under, if it was."""

    begin: int
    end: int
    state: State
    workout: str | None


class StageSpan(NamedTuple):
    """A stretch of one true sleep stage, in minutes UTC."""

    begin: int
    end: int
    stage: SleepStage


@dataclass
class Day:
    """A waking day and the night after it: minutes `[begin, begin + len(states))` UTC."""

    index: int
    begin: int
    bed: int
    states: list[State]
    bouts: list[Bout]
    stages: list[StageSpan]
    resting_pulse: float
    energy: list[float] = field(default_factory=list[float])
    steps: list[float] = field(default_factory=list[float])
    metres: list[float] = field(default_factory=list[float])
    flights: list[int] = field(default_factory=list[int])
    pulse: list[float] = field(default_factory=list[float])


def seeded(*parts: object) -> random.Random:
    """Give a generator that depends on nothing but `parts`, so that any day can be made on its own."""
    return random.Random("/".join(str(part) for part in parts))  # noqa: S311 - a simulation, not a secret


class Timeline:
    """The life of one person from the day `first` for `days` days; `day(i)` is pure in (seed, i)."""

    def __init__(self, seed: int, first: date, days: int, trips: tuple[Trip, ...] | None = None) -> None:
        self.seed = seed
        self.first = first
        self.days = days
        self.trips = default_trips(seed, days) if trips is None else trips
        self._switches = self._zone_switches()
        self._moments = [moment for moment, _ in self._switches]
        self.offset_s = lru_cache(maxsize=4096)(self._offset_s)

    def date(self, index: int) -> date:
        """Give the local date of day `index`."""
        return self.first + timedelta(days=index)

    def minute(self, index: int, wall: int) -> int:
        """Give the UTC minute at which day `index` is `wall` minutes past midnight, where the person is."""
        zone = ZoneInfo(self._zone_name(index, wall))
        local = datetime.combine(self.date(index), datetime.min.time(), zone) + timedelta(minutes=wall)
        return int(local.timestamp()) // 60

    def local_date(self, minute: int) -> date:
        """Give the date on the person's watch at that minute."""
        seconds = minute * 60 + self.offset_s(minute // 15)
        return date.fromordinal(719163 + seconds // 86400)

    def day(self, index: int) -> Day:
        """Give what happened between waking up on day `index` and waking up on the next."""
        rng = seeded(self.seed, "day", index)
        begin = self.minute(index, self._waking(index))
        bed = max(self.minute(index, self._bedtime(index)), begin + 8 * 60)
        end = max(self.minute(index + 1, self._waking(index + 1)), bed + 4 * 60)
        bouts = self._bouts(index, rng, begin, bed)
        day = Day(
            index,
            begin,
            bed,
            _states(begin, bed, end, bouts),
            bouts,
            _night(rng, bed, end),
            self._resting_pulse(index),
        )
        _fill(day, rng)
        return day

    def stressed(self, index: int) -> bool:
        """Whether day `index` lies in the hard week: short nights, higher resting pulse."""
        return 0.55 <= index / max(self.days, 1) < 0.55 + 6 / max(self.days, 30)

    def weekend(self, index: int) -> bool:
        """Whether day `index` is a Saturday or Sunday."""
        return self.date(index).weekday() >= 5

    def _resting_pulse(self, index: int) -> float:
        rng = seeded(self.seed, "pulse", index)
        progress = index / max(self.days, 1)
        return 60.5 - 2.5 * progress + (4.0 if self.stressed(index) else 0.0) + rng.gauss(0, 0.8)

    def _waking(self, index: int) -> int:
        rng = seeded(self.seed, "wake", index)
        return round(rng.gauss(8 * 60, 30)) if self.weekend(index) else round(rng.gauss(6 * 60 + 35, 12))

    def _bedtime(self, index: int) -> int:
        rng = seeded(self.seed, "bed", index)
        late = 70 if self.stressed(index) else 40 if self.date(index).weekday() in {4, 5} else 0
        return round(rng.gauss(22 * 60 + 50 + late, 18))

    def _travelling(self, index: int) -> bool:
        return any(index in {trip.first, trip.last} for trip in self.trips)

    def _bouts(self, index: int, rng: random.Random, begin: int, bed: int) -> list[Bout]:
        """Give the day's activities in order, without overlap, inside the waking hours."""
        if self._travelling(index):
            plan = _travel_plan(rng)
        elif self.weekend(index):
            plan = _weekend_plan(rng)
        else:
            plan = _weekday_plan(rng, self.date(index).weekday(), tired=self.stressed(index))
        bouts: list[Bout] = []
        free = begin + 3
        for wall, length, state, workout in sorted(plan, key=lambda item: item[0]):
            start = max(self.minute(index, wall), free)
            end = min(start + length, bed - 70)  # the last hour before bed is quiet
            if end - start >= 2:
                bouts.append(Bout(start, end, state, workout if end - start >= 10 else None))
                free = end
        return bouts

    def _zone_name(self, index: int, wall: int) -> str:
        for trip in self.trips:
            if (trip.first, _LANDING) <= (index, wall) < (trip.last, _LANDING):
                return trip.zone
        return HOME

    def _zone_switches(self) -> list[tuple[int, ZoneInfo]]:
        switches = [(-(1 << 60), ZoneInfo(HOME))]
        for trip in sorted(self.trips):
            out, back = self.minute(trip.first, _LANDING - 1) + 1, self.minute(trip.last, _LANDING - 1) + 1
            switches += [(out, ZoneInfo(trip.zone)), (back, ZoneInfo(HOME))]
        return switches

    def _offset_s(self, quarter: int) -> int:
        """Give the offset from UTC in seconds during a quarter of an hour; no zone changes within one."""
        zone = self._switches[bisect_right(self._moments, quarter * 15) - 1][1]
        offset = datetime.fromtimestamp(quarter * 900, zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())


def default_trips(seed: int, days: int) -> tuple[Trip, ...]:
    """Plan a long weekend in Europe each 90 days, and three days in New York in longer timelines."""
    rng = seeded(seed, "trips")
    trips: list[Trip] = []
    for start in range(0, max(0, days - 29), 90):
        first = start + rng.randrange(8, 16)
        trips.append(Trip(first, first + 4, rng.choice(("Europe/Lisbon", "Europe/Athens", "Europe/London"))))
        if days - start >= 80:
            first = start + rng.randrange(60, 70)
            trips.append(Trip(first, first + 3, "America/New_York"))
    return tuple(trips)


def _states(begin: int, bed: int, end: int, bouts: list[Bout]) -> list[State]:
    states: list[State] = []
    for bout in bouts:
        states.extend(_same("rest", bout.begin - begin - len(states)))
        states.extend(_same(bout.state, bout.end - bout.begin))
    states.extend(_same("rest", bed - begin - len(states)))
    states.extend(_same("sleep", end - bed))
    return states


def _same(state: State, minutes: int) -> Iterator[State]:
    return repeat(state, minutes)


_Plan: TypeAlias = list[tuple[int, int, State, str | None]]


def _weekday_plan(rng: random.Random, weekday: int, *, tired: bool) -> _Plan:
    plan: _Plan = [
        (6 * 60 + 50, rng.randrange(15, 30), "light", None),
        (7 * 60 + 50, rng.randrange(9, 15), "walk", None),
        (12 * 60 + 15, rng.randrange(8, 26), "walk", None),
        (17 * 60 + 20, rng.randrange(10, 16), "brisk" if rng.random() < 0.5 else "walk", None),
        (19 * 60 + 40, rng.randrange(25, 45), "light", None),
    ]
    plan += _errands(rng, (9, 10, 11, 13, 14, 15, 16))
    chance = 0.25 if tired else 0.85
    if weekday in {1, 3} and rng.random() < chance:
        plan.append((18 * 60 + rng.randrange(0, 20), rng.randrange(28, 52), "run", "Running"))
    elif weekday == 0 and rng.random() < chance:
        plan.append((18 * 60, rng.randrange(35, 55), "strength", "TraditionalStrengthTraining"))
    return plan


def _weekend_plan(rng: random.Random) -> _Plan:
    plan: _Plan = [
        (8 * 60 + 30, rng.randrange(20, 40), "light", None),
        (13 * 60, rng.randrange(20, 45), "light", None),
        (18 * 60 + 30, rng.randrange(30, 50), "light", None),
        (20 * 60, rng.randrange(8, 20), "walk", None),
    ]
    plan += _errands(rng, (9, 10, 11, 12, 16, 17, 19))
    choice = rng.random()
    if choice < 0.4:
        plan.append((10 * 60 + 15, rng.randrange(60, 120), "ride", "Cycling"))
    elif choice < 0.8:
        plan.append((14 * 60 + 30, rng.randrange(50, 100), "brisk", "Hiking"))
    else:
        plan.append((15 * 60, rng.randrange(30, 60), "walk", None))
    return plan


def _errands(rng: random.Random, hours: tuple[int, ...]) -> _Plan:
    """Get up for a few minutes in most of these hours."""
    plan: _Plan = []
    for hour in hours:
        if rng.random() < 0.85:
            plan.append((hour * 60 + rng.randrange(5, 55), rng.randrange(2, 6), "light", None))
    return plan


def _travel_plan(rng: random.Random) -> _Plan:
    return [
        (8 * 60, rng.randrange(20, 40), "light", None),
        (9 * 60 + 30, rng.randrange(12, 25), "walk", None),
        (12 * 60, rng.randrange(8, 15), "walk", None),
        (17 * 60, rng.randrange(15, 40), "walk", None),
        (19 * 60, rng.randrange(10, 25), "light", None),
    ]


def _night(rng: random.Random, bed: int, wake: int) -> list[StageSpan]:
    """Cycles of about 90 minutes: deep sleep early, REM late, short wakings between."""
    stages: list[StageSpan] = [StageSpan(bed, bed + rng.randrange(4, 22), "awake")]
    cycle = 0
    while stages[-1].end < wake:
        deep, rem = max(4, 34 - 9 * cycle), min(36, 8 + 7 * cycle)
        parts: tuple[tuple[SleepStage, int], ...] = (
            ("core", rng.randrange(14, 26)),
            ("deep", deep + rng.randrange(-3, 6)),
            ("core", rng.randrange(12, 24)),
            ("rem", rem + rng.randrange(-3, 6)),
            ("awake", rng.randrange(1, 5) if rng.random() < 0.6 else 0),
        )
        for stage, length in parts:
            begin = stages[-1].end
            if length > 0 and begin < wake:
                stages.append(StageSpan(begin, min(begin + length, wake), stage))
        cycle += 1
    return stages


def _fill(day: Day, rng: random.Random) -> None:
    """Give every minute its energy, steps, distance, flights and pulse: slow drift plus quick change."""
    vigour, pulse = rng.gauss(1.0, 0.06), day.resting_pulse
    drift = 0.0
    for state in day.states:
        gait = GAITS[state]
        drift = 0.9 * drift + rng.gauss(0, 0.04)
        effort = max(0.2, vigour * (1 + drift))
        steps = max(0.0, gait.steps * effort * (1 + rng.gauss(0, 0.08)))
        if state == "light" and rng.random() < 0.5:
            steps = 0.0  # housework is steps one minute, none the next
        day.steps.append(steps)
        day.metres.append(gait.metres * steps / gait.steps if gait.steps else 0.0)
        day.energy.append(gait.energy * effort)
        day.flights.append(1 if rng.random() < gait.flights else 0)
        pulse += 0.3 * (day.resting_pulse + gait.pulse * (0.8 + 0.2 * effort) - pulse) + rng.gauss(0, 1.2)
        day.pulse.append(pulse)
