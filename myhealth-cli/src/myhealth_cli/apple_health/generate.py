"""Generate realistic Apple Health exports, for tests and the demo: `generate_export(path, seed=1, days=90)`.

The same arguments give the same bytes. Records are grouped by type as in real exports, so each type is
spooled to a temporary file while the days go by; memory does not grow with their number.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING, Final
from xml.sax.saxutils import quoteattr

from myhealth_cli.apple_health.observe import WATCH, Seen, forgotten, observe
from myhealth_cli.apple_health.truth import EXERCISE, SITTING, Bout, Day, Timeline, Trip, seeded

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MEMBER: Final = "apple_health_export/export.xml"
GOAL_KCAL: Final = 500
_CATEGORIES: Final = {
    "SleepAnalysis": "HKCategoryValueSleepAnalysis",
    "AppleStandHour": "HKCategoryValueAppleStandHour",
}
_STAMP: Final = (2024, 1, 1, 0, 0, 0)


@dataclass
class Truth:
    """The true sums of one local day, which its activity summary states."""

    energy_kcal: float = 0.0
    steps: float = 0.0
    exercise_minutes: int = 0
    stood: set[int] = field(default_factory=set[int])
    watch_forgotten: bool = False


@dataclass(frozen=True)
class Generated:
    """A generated export: the truth per local day, and how many elements of which kind it holds."""

    path: Path
    truth: dict[date, Truth]
    elements: dict[str, int]
    trips: tuple[Trip, ...]


def generate_export(
    path: Path,
    *,
    seed: int,
    days: int,
    end_date: date,
    density: float = 1.0,
    quirks: bool = False,
    trips: tuple[Trip, ...] | None = None,
) -> Generated:
    """Write an export of `days` local days up to and including `end_date` to `path` (.zip, else XML).

    `density` multiplies heart rate samples (for big files); `quirks` adds what makes real exports invalid
    XML: the DTD of iOS 16 and later with a missing `>`, and a control character in a source's name.
    """
    timeline = Timeline(seed, end_date - timedelta(days=days - 1), days, trips)
    with ExitStack() as stack:
        spool = _Spool(stack)
        truth = _live(timeline, spool, density)
        out = stack.enter_context(_output(path))
        _write(out, _prolog(timeline, quirks=quirks))
        spool.drain(out, quirks=quirks)
        for day in sorted(truth):
            _write(out, _summary(day, truth[day]))
        _write(out, "</HealthData>\n")
    elements = spool.counts | {"ActivitySummary": len(truth)}
    return Generated(path, truth, elements, timeline.trips)


def _live(timeline: Timeline, spool: _Spool, density: float) -> dict[date, Truth]:
    """Let the days go by: sum the truth per local day, spool what devices saw."""
    truth = {timeline.date(index): Truth() for index in range(timeline.days)}
    opens, closes = timeline.minute(0, -180) * 60, timeline.minute(timeline.days, 12 * 60) * 60
    for index in range(-1, timeline.days):
        day = timeline.day(index)
        _add_truth(timeline, day, truth)
        for seen in observe(timeline, day, density):
            if opens <= seen.begin and seen.end <= closes:
                spool.add(seen.kind, _record(timeline, seen))
        if index >= 0 and not forgotten(timeline, index):
            for bout in day.bouts:
                if bout.workout is not None:
                    spool.add("Workout", _workout(timeline, day, bout))
        if index >= 0:
            truth[timeline.date(index)].watch_forgotten = forgotten(timeline, index)
    return truth


def _add_truth(timeline: Timeline, day: Day, truth: dict[date, Truth]) -> None:
    for index, state in enumerate(day.states):
        minute = day.begin + index
        sums = truth.get(timeline.local_date(minute))
        if sums is None:
            continue
        sums.energy_kcal += day.energy[index]
        sums.steps += day.steps[index]
        sums.exercise_minutes += state in EXERCISE
        if state not in SITTING:
            sums.stood.add((minute * 60 + timeline.offset_s(minute // 15)) // 3600)


class _Spool:
    """One temporary file per record type, joined in the order the types first appeared."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[str, IO[bytes]] = {}
        self.counts: dict[str, int] = {}

    def add(self, kind: str, element: str) -> None:
        if kind not in self._files:
            self._files[kind] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is
            self.counts[kind] = 0
        self._files[kind].write(element.encode())
        self.counts[kind] += 1

    def drain(self, out: IO[bytes], *, quirks: bool) -> None:
        """Write all types, workouts last."""
        for kind in sorted(self._files, key="Workout".__eq__):
            file = self._files[kind]
            file.seek(0)
            if quirks and kind == "BodyMass":
                out.write(file.read().replace(b'"Waage"', b'"Waage\x0b&#x0b;"'))
            else:
                shutil.copyfileobj(file, out)


@contextmanager
def _output(path: Path) -> Generator[IO[bytes]]:
    if path.suffix.lower() != ".zip":
        with path.open("wb") as file:
            yield file
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        cda = zipfile.ZipInfo("apple_health_export/export_cda.xml", _STAMP)
        archive.writestr(cda, b'<?xml version="1.0"?>\n<ClinicalDocument xmlns="urn:hl7-org:v3"/>\n')
        info = zipfile.ZipInfo(MEMBER, _STAMP)
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w", force_zip64=True) as file:
            yield file


def _write(out: IO[bytes], text: str) -> None:
    out.write(text.encode())


def _time(timeline: Timeline, seconds: int) -> str:
    offset = timeline.offset_s(seconds // 900)
    zone = timezone(timedelta(seconds=offset))
    return datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%d %H:%M:%S %z")


def _times(timeline: Timeline, begin: int, end: int) -> str:
    finish = _time(timeline, end)
    start = finish if begin == end else _time(timeline, begin)
    return f'creationDate="{_time(timeline, end + 7)}" startDate="{start}" endDate="{finish}"'


def _record(timeline: Timeline, seen: Seen) -> str:
    prefix = _CATEGORIES.get(seen.kind)
    kind = f"HK{'Quantity' if prefix is None else 'Category'}TypeIdentifier{seen.kind}"
    device = f" device={quoteattr(seen.origin.device)}" if seen.origin.device else ""
    unit = f' unit="{seen.unit}"' if seen.unit else ""
    head = (
        f' <Record type="{kind}" sourceName={quoteattr(seen.origin.name)}'
        f' sourceVersion="{seen.origin.version}"{device}{unit}'
        f' {_times(timeline, seen.begin, seen.end)} value="{prefix or ""}{seen.value}"'
    )
    return f"{head}>{seen.children}\n </Record>\n" if seen.children else f"{head}/>\n"


def _workout(timeline: Timeline, day: Day, bout: Bout) -> str:
    """Write a workout as the Watch did: iOS 16 statistics, or the older attributes in the first third."""
    span = slice(bout.begin - day.begin, bout.end - day.begin)
    rng = seeded(timeline.seed, "workout", bout.begin)
    energy = sum(day.energy[span]) * rng.gauss(1.0, 0.004)
    minutes = bout.end - bout.begin
    metres = sum(day.metres[span]) if bout.state != "ride" else minutes * 330.0
    times = _times(timeline, bout.begin * 60, bout.end * 60)
    older = day.index < timeline.days // 3
    totals = (
        f' totalDistance="{metres / 1000:.6g}" totalDistanceUnit="km"'
        f' totalEnergyBurned="{energy:.6g}" totalEnergyBurnedUnit="kcal"'
    )
    head = (
        f' <Workout workoutActivityType="HKWorkoutActivityType{bout.workout}" duration="{minutes}"'
        f' durationUnit="min"{totals if older else ""} sourceName={quoteattr(WATCH.name)}'
        f' sourceVersion="{WATCH.version}" device={quoteattr(WATCH.device)} {times}>\n'
        f'  <MetadataEntry key="HKIndoorWorkout" value="{int(bout.state == "strength")}"/>\n'
    )
    distance = "DistanceCycling" if bout.state == "ride" else "DistanceWalkingRunning"
    statistics = "" if older else _statistic(times, "ActiveEnergyBurned", energy, "kcal")
    if not older and bout.state != "strength":
        statistics += _statistic(times, distance, metres / 1000, "km")
    return f"{head}{statistics} </Workout>\n"


def _statistic(times: str, kind: str, total: float, unit: str) -> str:
    when = times[times.index("startDate") :]
    kind = f"HKQuantityTypeIdentifier{kind}"
    return f'  <WorkoutStatistics type="{kind}" {when} sum="{total:.6g}" unit="{unit}"/>\n'


def _summary(day: date, truth: Truth) -> str:
    return (
        f' <ActivitySummary dateComponents="{day}" activeEnergyBurned="{truth.energy_kcal:.3f}"'
        f' activeEnergyBurnedGoal="{GOAL_KCAL}" activeEnergyBurnedUnit="kcal" appleMoveTime="0"'
        f' appleMoveTimeGoal="0" appleExerciseTime="{truth.exercise_minutes}" appleExerciseTimeGoal="30"'
        f' appleStandHours="{len(truth.stood)}" appleStandHoursGoal="12"/>\n'
    )


def _prolog(timeline: Timeline, *, quirks: bool) -> str:
    exported = _time(timeline, timeline.minute(timeline.days, 12 * 60) * 60)
    broken = "\n<!ATTLIST VisionPrescription\n  type CDATA #REQUIRED\n" if quirks else "\n"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<!DOCTYPE HealthData [\n<!-- HealthKit Export Version: 14 -->{broken}{_DTD}]>\n"
        f'<HealthData locale="de_DE">\n <ExportDate value="{exported}"/>\n'
        ' <Me HKCharacteristicTypeIdentifierDateOfBirth="1988-05-14"'
        ' HKCharacteristicTypeIdentifierBiologicalSex="HKBiologicalSexFemale"'
        ' HKCharacteristicTypeIdentifierBloodType="HKBloodTypeNotSet"'
        ' HKCharacteristicTypeIdentifierFitzpatrickSkinType="HKFitzpatrickSkinTypeNotSet"'
        ' HKCharacteristicTypeIdentifierCardioFitnessMedicationsUse="None"/>\n'
    )


_DTD: Final = """\
<!ELEMENT HealthData (ExportDate, Me, (Record | Workout | ActivitySummary)*)>
<!ATTLIST HealthData locale CDATA #REQUIRED>
<!ELEMENT ExportDate EMPTY>
<!ATTLIST ExportDate value CDATA #REQUIRED>
<!ELEMENT Me EMPTY>
<!ELEMENT Record (MetadataEntry | HeartRateVariabilityMetadataList)*>
<!ELEMENT HeartRateVariabilityMetadataList (InstantaneousBeatsPerMinute*)>
<!ELEMENT InstantaneousBeatsPerMinute EMPTY>
<!ELEMENT Workout (MetadataEntry | WorkoutStatistics)*>
<!ELEMENT WorkoutStatistics EMPTY>
<!ELEMENT MetadataEntry EMPTY>
<!ELEMENT ActivitySummary EMPTY>
"""
