from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from myhealth_cli.apple_health import Export
from myhealth_cli.apple_health.generate import Generated, generate_export
from myhealth_cli.apple_health.samples import ActivitySummary, Quantity, Sample, Sleep, Workout
from myhealth_cli.apple_health.truth import HOME, Timeline, Trip

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BEST_FIRST = {"watch": 0, "phone": 1, "other": 2}
SPRING, AUTUMN = date(2025, 4, 20), date(2024, 11, 20)  # 75 days before each span a change of clocks


def make(folder: Path, *, seed: int = 1, days: int = 75, end: date = SPRING) -> Generated:
    return generate_export(folder / "export.xml", seed=seed, days=days, end_date=end, density=0.02)


def read(path: Path) -> list[Sample]:
    with Export(path) as export:
        return list(export.samples())


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def energy(samples: Iterable[Sample]) -> list[Quantity]:
    return [sample for sample in samples if sample.label == "active_energy" and isinstance(sample, Quantity)]


def best_source_wins(samples: list[Quantity]) -> dict[str, float]:
    """Compute daily sums the plain way, second by second: a sample counts where no better one covers it."""
    first = min(seconds(sample.start) for sample in samples)
    covered = bytearray(max(seconds(sample.end) for sample in samples) - first)
    days: dict[str, float] = defaultdict(float)
    for sample in sorted(samples, key=lambda sample: BEST_FIRST[sample.device]):
        start, end = seconds(sample.start) - first, seconds(sample.end) - first
        rate = sample.value / (end - start)
        for at in range(start, end, 60):
            piece = slice(at, min(at + 60, end))
            day = datetime.fromtimestamp(at + first, ZoneInfo(HOME)).date().isoformat()
            days[day] += rate * covered[piece].count(0)
            covered[piece] = b"\1" * len(covered[piece])
    return days


def within_two_percent(found: dict[str, float], summaries: list[ActivitySummary]) -> float:
    close = [
        abs(found.get(summary.date, 0.0) - summary.active_energy_kcal) <= 0.02 * summary.active_energy_kcal
        for summary in summaries
    ]
    return sum(close) / len(close)


@pytest.mark.parametrize(("seed", "end"), [(1, SPRING), (7, AUTUMN)])
def test_summaries_follow_from_the_samples_only_when_sources_are_deduplicated(
    tmp_path: Path, seed: int, end: date
) -> None:
    samples = read(make(tmp_path, seed=seed, end=end).path)
    summaries = [sample for sample in samples if isinstance(sample, ActivitySummary)]
    assert len(summaries) == 75
    found = energy(samples)
    assert within_two_percent(best_source_wins(found), summaries) >= 0.9
    naive: dict[str, float] = defaultdict(float)
    for sample in found:
        naive[sample.start[:10]] += sample.value
    assert within_two_percent(naive, summaries) < 0.2


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    made = generate_export(
        tmp_path / "export.zip", seed=4, days=12, end_date=SPRING, density=0.2, quirks=True
    )
    with Export(made.path) as export:
        samples = list(export.samples())
        report = export.report
    assert not report.skipped
    sent = Counter(sample.label for sample in samples)
    assert sent["active_energy"] == made.elements["ActiveEnergyBurned"]
    assert sent["sleep"] == made.elements["SleepAnalysis"]
    assert sent["workout"] == made.elements["Workout"] > 0
    assert sum(sent.values()) + sum(report.unknown_types.values()) == sum(made.elements.values())
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        if isinstance(sample, ActivitySummary):
            truth = made.truth[date.fromisoformat(sample.date)]
            assert sample.active_energy_kcal == pytest.approx(truth.energy_kcal, abs=0.001)
            assert sample.exercise_minutes == truth.exercise_minutes
        elif isinstance(sample, Workout):
            assert sample.energy_kcal is not None
            assert sample.energy_kcal > 0


def test_without_quirks_it_is_well_formed_xml(tmp_path: Path) -> None:
    made = make(tmp_path, days=3)
    counts = Counter(element.tag for element in ET.parse(made.path).getroot())
    assert counts["ActivitySummary"] == 3
    assert counts["Record"] == sum(made.elements.values()) - 3 - made.elements.get("Workout", 0)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def content(name: str, seed: int) -> bytes:
        path = tmp_path / name
        generate_export(path, seed=seed, days=3, end_date=SPRING)
        return path.read_bytes()

    assert content("a.zip", 1) == content("b.zip", 1) != content("c.zip", 2)


def test_days_have_the_length_their_clock_gives_them() -> None:
    change = date(2025, 3, 30)
    timeline = Timeline(1, change - timedelta(days=2), 5, ())
    minutes: Counter[date] = Counter()
    for day in map(timeline.day, range(5)):
        minutes.update(timeline.local_date(day.begin + minute) for minute in range(len(day.states)))
    assert minutes[change] == 23 * 60
    assert minutes[change - timedelta(days=1)] == 24 * 60


def test_nights_and_days_follow_one_another_without_a_gap() -> None:
    timeline = Timeline(3, date(2025, 2, 1), 90)
    days = [timeline.day(index) for index in range(90)]
    assert len(timeline.trips) == 2
    for day, following in itertools.pairwise(days):
        assert day.begin + len(day.states) == following.begin
        assert day.stages[0].begin == day.bed
        assert day.stages[-1].end == following.begin


def test_a_journey_changes_the_offset_of_the_samples(tmp_path: Path) -> None:
    made = generate_export(
        tmp_path / "export.xml",
        seed=1,
        days=8,
        end_date=date(2025, 2, 20),
        density=0.05,
        trips=(Trip(2, 5, "America/New_York"),),
    )
    offsets: dict[str, set[str]] = defaultdict(set)
    for sample in read(made.path):
        if isinstance(sample, Quantity):
            offsets[sample.start[:10]].add(sample.start[-6:])
    assert offsets["2025-02-14"] == {"+01:00"}
    assert offsets["2025-02-15"] == {"+01:00", "-05:00"}
    assert offsets["2025-02-17"] == {"-05:00"}
    assert offsets["2025-02-20"] == {"+01:00"}


def test_both_sources_overlap_and_sleep_has_stages(tmp_path: Path) -> None:
    samples = read(make(tmp_path, days=10).path)
    assert {sample.device for sample in energy(samples)} == {"watch", "phone"}
    assert {sample.source for sample in energy(samples)} == {"Annas Apple Watch", "iPhone von Anna"}
    stages = {sample.stage for sample in samples if isinstance(sample, Sleep)}
    assert stages == {"in_bed", "awake", "core", "deep", "rem"}


def test_no_sample_lies_after_the_export(tmp_path: Path) -> None:
    made = make(tmp_path, days=3)
    latest = max(seconds(sample.end) for sample in read(made.path) if isinstance(sample, Quantity | Sleep))
    assert datetime.fromtimestamp(latest, UTC).date() <= SPRING + timedelta(days=1)
