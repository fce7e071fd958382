"""How devices see the truth: a Watch worn most of the time, an iPhone carried some of it.

Each function takes a true day and gives what lands in the Health database, with the granularity of real
exports: Watch samples of one to twenty minutes, heart rate every few minutes (every few seconds during a
workout), iPhone samples of up to ten minutes with miscounts. Where both were there, both report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from myhealth_cli.apple_health.truth import BASAL_KCAL, EXERCISE, SITTING, Day, State, Timeline, seeded

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_LONGEST: Final[dict[State, int]] = {"sleep": 60, "rest": 18, "light": 6}  # minutes of one Watch sample


class Origin(NamedTuple):
    """A source as an export names it."""

    name: str
    version: str
    device: str


WATCH: Final = Origin(
    "Annas Apple\u00a0Watch",
    "11.4",
    "<<HKDevice: 0x302bd1a40>, name:Apple Watch, manufacturer:Apple Inc., model:Watch, "
    "hardware:Watch7,1, software:11.4>",
)
PHONE: Final = Origin(
    "iPhone von Anna",
    "18.4.1",
    "<<HKDevice: 0x302bd2f80>, name:iPhone, manufacturer:Apple Inc., model:iPhone, "
    "hardware:iPhone15,4, software:18.4.1>",
)
SCALE: Final = Origin("Waage", "3.2", "")


class Seen(NamedTuple):
    """A record as a device wrote it: `begin` and `end` in seconds UTC; `kind` without its HK prefix."""

    kind: str
    origin: Origin
    begin: int
    end: int
    value: str
    unit: str | None
    children: str = ""


class Wearing(NamedTuple):
    """Per minute of a day: whether the Watch was on the wrist, whether the iPhone was carried."""

    watch: list[bool]
    phone: list[bool]


def forgotten(timeline: Timeline, index: int) -> bool:
    """Whether the Watch stayed at home that day: one day in about 45."""
    block, place = divmod(index, 45)
    return place == seeded(timeline.seed, "forgotten", block).randrange(18, 45)


def wearing(timeline: Timeline, day: Day) -> Wearing:
    """Draw who was there: the Watch charges in the quiet hour before bed, the phone comes on most walks."""
    rng = seeded(timeline.seed, "wearing", day.index)
    length = len(day.states)
    if forgotten(timeline, day.index):
        watch = [False] * length
    else:
        watch = [True] * length
        charge = day.bed - day.begin - rng.randrange(40, 65)
        _clear(watch, charge, rng.randrange(18, 32))
    phone = [False] * length
    chances: dict[State, float] = {"walk": 0.8, "brisk": 0.85, "light": 0.3, "run": 0.3, "ride": 0.9}
    for bout in day.bouts:
        if rng.random() < chances.get(bout.state, 0.0) + (0.1 if not watch[0] else 0.0):
            start, end = bout.begin - day.begin, bout.end - day.begin
            phone[start:end] = [True] * (end - start)
    return Wearing(watch, phone)


def _clear(flags: list[bool], start: int, length: int) -> None:
    start = max(0, start)
    end = min(len(flags), start + length)
    flags[start:end] = [False] * (end - start)


def observe(timeline: Timeline, day: Day, density: float) -> Iterator[Seen]:
    """Give everything recorded on a day; `density` multiplies how often the heart rate is taken."""
    worn = wearing(timeline, day)
    rng = seeded(timeline.seed, "observe", day.index)
    yield from _watch_motion(day, worn.watch, rng)
    yield from _watch_pulse(day, worn.watch, rng, density)
    yield from _watch_night(day, worn.watch, rng)
    yield from _phone_motion(day, worn.phone, rng)
    yield from _rarities(timeline, day, rng, worn=worn.watch[0])


def _spans(flags: list[bool], states: list[State], rng: random.Random) -> Iterator[tuple[int, int]]:
    """Cut the flagged minutes into samples: within one state, of a length that suits it."""
    start = 0
    limit = 0
    for index in range(len(flags) + 1):
        over = index == len(flags) or not flags[index]
        if index > start and (over or states[index] != states[start] or index - start >= limit):
            yield start, index
            start = index
        if over:
            start = index + 1
        elif index == start:
            limit = rng.randint(1, _LONGEST.get(states[index], 3))


def _watch_motion(day: Day, worn: list[bool], rng: random.Random) -> Iterator[Seen]:
    shift = day.begin * 60 + rng.randrange(60)
    bias = rng.gauss(1.0, 0.003)
    for start, end in _spans(worn, day.states, rng):
        begin, finish = shift + start * 60, shift + end * 60
        energy = sum(day.energy[start:end]) * bias * rng.gauss(1.0, 0.02)
        if energy >= 0.001:
            yield Seen("ActiveEnergyBurned", WATCH, begin, finish, f"{energy:.6g}", "kcal")
        steps = round(sum(day.steps[start:end]) * rng.gauss(1.0, 0.012))
        if steps > 0:
            metres = sum(day.metres[start:end]) * rng.gauss(1.0, 0.015)
            yield Seen("StepCount", WATCH, begin, finish, str(steps), "count")
            yield Seen("DistanceWalkingRunning", WATCH, begin, finish, f"{metres / 1000:.6g}", "km")
        if flights := sum(day.flights[start:end]):
            yield Seen("FlightsClimbed", WATCH, begin, finish, str(flights), "count")
        basal = BASAL_KCAL * (end - start) * rng.gauss(1.0, 0.01)
        yield Seen("BasalEnergyBurned", WATCH, begin, finish, f"{basal:.6g}", "kcal")
    for index, state in enumerate(day.states):
        if state in EXERCISE and worn[index]:
            at = shift + index * 60
            yield Seen("AppleExerciseTime", WATCH, at, at + 60, "1", "min")


def _watch_pulse(day: Day, worn: list[bool], rng: random.Random, density: float) -> Iterator[Seen]:
    at = day.begin * 60.0
    end = (day.begin + len(day.states)) * 60
    training = {
        minute for bout in day.bouts if bout.workout is not None for minute in range(bout.begin, bout.end)
    }
    while at < end:
        minute = int(at) // 60
        index = minute - day.begin
        if worn[index]:
            yield Seen(
                "HeartRate",
                WATCH,
                int(at),
                int(at),
                str(round(day.pulse[index] + rng.gauss(0, 1))),
                "count/min",
            )
        pause = rng.uniform(4, 6) if minute in training else rng.uniform(180, 420)
        at += max(1.0, pause / density)


_STAGES: Final = {"awake": "Awake", "core": "AsleepCore", "deep": "AsleepDeep", "rem": "AsleepREM"}


def _watch_night(day: Day, worn: list[bool], rng: random.Random) -> Iterator[Seen]:
    end = day.begin + len(day.states)
    yield Seen("SleepAnalysis", PHONE, day.bed * 60, end * 60, "InBed", None)
    if not worn[-1]:
        return
    for span in day.stages:
        yield Seen("SleepAnalysis", WATCH, span.begin * 60, span.end * 60 + 0, _STAGES[span.stage], None)
    for minute in range(day.bed + 30, end, 24):
        at = minute * 60 + rng.randrange(60)
        yield Seen("RespiratoryRate", WATCH, at, at, f"{rng.gauss(14.5, 0.7):.1f}", "count/min")
    for minute in range(day.bed + 45, end, 50):
        at = minute * 60 + rng.randrange(60)
        yield Seen("OxygenSaturation", WATCH, at, at, f"{min(1.0, rng.gauss(0.965, 0.01)):.2f}", "%")


def _phone_motion(day: Day, carried: list[bool], rng: random.Random) -> Iterator[Seen]:
    """Count in a pocket: steps off by some percent, energy estimated from them."""
    shift = day.begin * 60 + rng.randrange(60)
    start: int | None = None
    for index in range(len(carried) + 1):
        moving = index < len(carried) and carried[index] and day.steps[index] > 0
        if moving and start is None:
            start = index
        if start is not None and (not moving or index - start >= 10):
            yield from _phone_sample(day, start, index, shift, rng)
            start = index if moving else None


def _phone_sample(day: Day, start: int, end: int, shift: int, rng: random.Random) -> Iterator[Seen]:
    begin, finish = shift + start * 60, shift + end * 60
    miscount = rng.gauss(0.97, 0.06)
    steps = round(sum(day.steps[start:end]) * miscount)
    if steps <= 0:
        return
    metres = sum(day.metres[start:end]) * miscount * rng.gauss(1.0, 0.04)
    energy = sum(day.energy[start:end]) * miscount * rng.gauss(1.1, 0.1)
    yield Seen("StepCount", PHONE, begin, finish, str(steps), "count")
    yield Seen("DistanceWalkingRunning", PHONE, begin, finish, f"{max(metres, 1) / 1000:.6g}", "km")
    yield Seen("ActiveEnergyBurned", PHONE, begin, finish, f"{max(energy, 0.1):.6g}", "kcal")
    if flights := sum(day.flights[start:end]):
        yield Seen("FlightsClimbed", PHONE, begin, finish, str(flights), "count")


def _rarities(timeline: Timeline, day: Day, rng: random.Random, *, worn: bool) -> Iterator[Seen]:
    """Give what comes a few times a day or week, and types that no metric of ours covers."""
    morning = (day.begin + 10) * 60
    progress = day.index / max(timeline.days, 1)
    if worn:
        pulse = str(round(day.resting_pulse))
        yield Seen("RestingHeartRate", WATCH, morning, morning + 12 * 3600, pulse, "count/min")
        for hour in (2, 7, 13, 17):
            at = (day.begin + hour * 60) * 60 + rng.randrange(3000)
            yield _variability(day, at, rng, mean=34 if timeline.stressed(day.index) else 46)
        if any(bout.workout == "Running" for bout in day.bouts):
            at = (day.bed - 90) * 60
            fitness = f"{37.5 + 1.2 * progress + rng.gauss(0, 0.2):.2f}"
            yield Seen("VO2Max", WATCH, at, at, fitness, "mL/min·kg")
        stood = {minute // 60 for minute, state in enumerate(day.states, day.begin) if state not in SITTING}
        for hour in sorted(stood):
            yield Seen("AppleStandHour", WATCH, hour * 3600, hour * 3600 + 3600, "Stood", None)
    if timeline.date(day.index).weekday() in {2, 6}:
        mass = 71.4 - 1.3 * progress + rng.gauss(0, 0.25)
        yield Seen("BodyMass", SCALE, morning, morning, f"{mass:.1f}", "kg")
    for hour in (9, 15):
        at = (day.begin + hour * 60) * 60
        sound = f"{rng.gauss(64, 5):.4f}"
        yield Seen("EnvironmentalAudioExposure", WATCH if worn else PHONE, at, at + 1800, sound, "dBASPL")


def _variability(day: Day, at: int, rng: random.Random, *, mean: float) -> Seen:
    """Take the variability of a minute's beats, with the list of beats that exports carry inside."""
    sdnn = max(12.0, rng.gauss(mean, 7))
    beats = "".join(
        f'\n   <InstantaneousBeatsPerMinute bpm="{round(day.resting_pulse + rng.gauss(4, 5))}"'
        f' time="{second // 60:02}:{second % 60:02},{rng.randrange(100):02}"/>'
        for second in range(12)
    )
    children = f"\n  <HeartRateVariabilityMetadataList>{beats}\n  </HeartRateVariabilityMetadataList>"
    return Seen("HeartRateVariabilitySDNN", WATCH, at, at + 60, f"{sdnn:.4f}", "ms", children)
