from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myhealth_cli.apple_health import Export
from myhealth_cli.apple_health.samples import ActivitySummary, Quantity, Sample, Sleep, Workout
from myhealth_cli.errors import ExportDamagedError, ExportUnreadableError

TIMES = 'startDate="2024-03-01 08:00:00 +0100" endDate="2024-03-01 08:05:00 +0100"'
DEVICE = "&lt;&lt;HKDevice: 0x2811&gt;, name:Apple Watch, model:Watch&gt;"
WATCH = f'sourceName="Annas Apple\u00a0Watch" device="{DEVICE}"'
PHONE = 'sourceName="iPhone von Anna"'
STEPS = f'<Record type="HKQuantityTypeIdentifierStepCount" {WATCH} unit="count" {TIMES} value="321"/>'
SMALL = f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE HealthData [
<!ELEMENT HealthData (ExportDate, Record*)>
]>
<HealthData locale="de_DE">
 <ExportDate value="2024-03-02 10:00:00 +0100"/>
 {STEPS}
 <Record type="HKQuantityTypeIdentifierHeartRateVariabilitySDNN" {WATCH} unit="ms" {TIMES} value="41.5">
  <HeartRateVariabilityMetadataList>
   <InstantaneousBeatsPerMinute bpm="61" time="8:00:01,50"/>
  </HeartRateVariabilityMetadataList>
 </Record>
 <Record type="HKQuantityTypeIdentifierStepCount" {PHONE} unit="count" {TIMES} value="7"/>
 <Workout workoutActivityType="HKWorkoutActivityTypeRunning" duration="5" durationUnit="min" {WATCH} {TIMES}>
  <WorkoutStatistics type="HKQuantityTypeIdentifierActiveEnergyBurned" sum="62.5" unit="kcal"/>
 </Workout>
 <ActivitySummary dateComponents="2024-03-01" activeEnergyBurned="512" activeEnergyBurnedUnit="kcal"/>
</HealthData>
""".encode()
# Where each sample of SMALL is complete: a record with its start tag, a workout with its end tag.
COMPLETE = [
    match.end() for match in re.finditer(rb"<Record [^>]*>|</Workout>|<ActivitySummary [^>]*>", SMALL)
]


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "export.xml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def document(*elements: str) -> str:
    return f"<HealthData>{''.join(elements)}</HealthData>"


def read(path: Path) -> list[Sample]:
    with Export(path) as export:
        return list(export.samples())


def read_some(path: Path) -> tuple[list[Sample], ExportDamagedError | None]:
    samples: list[Sample] = []
    with Export(path) as export:
        try:
            samples.extend(export.samples())
        except ExportDamagedError as damage:
            return samples, damage
    return samples, None


def read_broken(path: Path) -> tuple[list[Sample], ExportDamagedError]:
    samples, damage = read_some(path)
    assert damage is not None
    return samples, damage


def test_records_workouts_and_summaries_become_samples(tmp_path: Path) -> None:
    steps, variability, phone, workout, summary = read(write(tmp_path, SMALL))
    assert isinstance(steps, Quantity)
    assert (steps.metric, steps.value, steps.unit) == ("steps", 321.0, "count")
    assert (steps.start, steps.end) == ("2024-03-01T08:00:00+01:00", "2024-03-01T08:05:00+01:00")
    assert (steps.source, steps.device) == ("Annas Apple Watch", "watch")
    assert isinstance(variability, Quantity)
    assert (variability.metric, variability.value) == ("hrv_sdnn", 41.5)
    assert isinstance(phone, Quantity)
    assert phone.device == "phone"
    assert isinstance(workout, Workout)
    assert (workout.activity, workout.duration_s, workout.energy_kcal) == ("running", 300.0, 62.5)
    assert workout.distance_m is None
    assert isinstance(summary, ActivitySummary)
    assert (summary.date, summary.active_energy_kcal) == ("2024-03-01", 512.0)


def test_a_file_cut_anywhere_keeps_what_is_complete_and_says_where(tmp_path: Path) -> None:
    whole = read(write(tmp_path, SMALL))
    recognisable = SMALL.index(b"HealthData [") + len(b"HealthData")
    for cut in range(recognisable, SMALL.index(b"</HealthData>") + len(b"</HealthData>")):
        samples, damage = read_broken(write(tmp_path, SMALL[:cut]))
        assert samples == whole[: sum(end <= cut for end in COMPLETE)]
        assert damage.offset == cut
        assert f"byte {cut:,}" in str(damage)
        tag = re.search(rb"<[/]?(\w+)[^>]*$", SMALL[:cut])
        if tag and cut > SMALL.index(b"<HealthData"):
            assert damage.element.startswith(f"<{tag[1].decode()}> no. ")


def test_a_file_too_short_to_tell_is_not_an_export(tmp_path: Path) -> None:
    for cut in range(SMALL.index(b"HealthData [") + len(b"HealthData")):
        with pytest.raises(ExportUnreadableError):
            Export(write(tmp_path, SMALL[:cut]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_never_costs_what_came_before(data: st.DataObject) -> None:
    at = data.draw(st.integers(SMALL.index(b"<Record"), len(SMALL) - 1))
    broken = SMALL[:at] + data.draw(st.binary(min_size=1, max_size=3)) + SMALL[at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        whole = read(write(Path(folder), SMALL))
        found, damage = read_some(write(Path(folder), broken))
    kept = sum(end <= at for end in COMPLETE)
    assert found[:kept] == whole[:kept]
    assert damage is None or 0 < damage.offset <= len(broken)


def test_the_element_and_its_number_are_named(tmp_path: Path) -> None:
    head = document(STEPS, STEPS, STEPS).encode().partition(b"</HealthData>")[0]
    samples, damage = read_broken(write(tmp_path, head + b'<Record type="HK'))
    assert len(samples) == 3
    assert damage.element == "<Record> no. 4"
    assert damage.offset == len(head) + 16
    assert damage.hint


@pytest.mark.parametrize(
    ("value", "stage"),
    [
        ("HKCategoryValueSleepAnalysisInBed", "in_bed"),
        ("HKCategoryValueSleepAnalysisAsleep", "asleep"),
        ("HKCategoryValueSleepAnalysisAsleepUnspecified", "asleep"),
        ("HKCategoryValueSleepAnalysisAwake", "awake"),
        ("HKCategoryValueSleepAnalysisAsleepCore", "core"),
        ("HKCategoryValueSleepAnalysisAsleepDeep", "deep"),
        ("HKCategoryValueSleepAnalysisAsleepREM", "rem"),
        ("4", "deep"),
    ],
)
def test_sleep_stages_old_and_new(tmp_path: Path, value: str, stage: str) -> None:
    record = f'<Record type="HKCategoryTypeIdentifierSleepAnalysis" {WATCH} {TIMES} value="{value}"/>'
    [sample] = read(write(tmp_path, document(record)))
    assert isinstance(sample, Sleep)
    assert sample.stage == stage


def test_older_workouts_carry_their_totals_as_attributes(tmp_path: Path) -> None:
    older = (
        '<Workout workoutActivityType="HKWorkoutActivityTypeTraditionalStrengthTraining" duration="0.5"'
        ' durationUnit="hr" totalDistance="1" totalDistanceUnit="mi" totalEnergyBurned="418.4"'
        f' totalEnergyBurnedUnit="kJ" sourceName="x" {TIMES}/>'
    )
    [workout] = read(write(tmp_path, document(older)))
    assert isinstance(workout, Workout)
    assert workout.activity == "traditional_strength_training"
    assert workout.duration_s == 1800.0
    assert workout.energy_kcal == pytest.approx(100.0)
    assert workout.distance_m == pytest.approx(1609.344)


def test_statistics_of_segments_add_up_and_nested_ones_do_not(tmp_path: Path) -> None:
    row = '<WorkoutStatistics type="HKQuantityTypeIdentifierDistanceCycling" sum="1.5" unit="km"/>'
    elements = (
        f'<Workout workoutActivityType="HKWorkoutActivityTypeCycling" sourceName="x" {TIMES}>'
        f'<MetadataEntry key="HKWorkoutBrandName" value="Feierabendrunde"/>'
        f"{row}{row}<WorkoutActivity>{row}</WorkoutActivity></Workout>"
    )
    [workout] = read(write(tmp_path, document(elements)))
    assert isinstance(workout, Workout)
    assert (workout.distance_m, workout.duration_s, workout.note) == (3000.0, 300.0, "Feierabendrunde")


def test_what_is_not_ours_is_counted_and_what_is_unreadable_too(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        document(
            STEPS.replace("StepCount", "DietaryWater"),
            STEPS.replace("321", "many"),
            STEPS.replace("2024-03-01 08:05", "2024-03-01 07:05"),
            STEPS.replace("2024-03-01 08:05", "2024-02-30 07:05"),
            '<ActivitySummary dateComponents="1969-12-30" activeEnergyBurned="0"/>',
            f'<Correlation type="x">{STEPS}</Correlation>',
            STEPS,
        ),
    )
    with Export(path) as export:
        assert len(list(export.samples())) == 1
        report = export.report
    assert report.unknown_types == {"HKQuantityTypeIdentifierDietaryWater": 1, "Correlation": 1}
    assert report.skipped == {
        "HKQuantityTypeIdentifierStepCount: value is no number": 1,
        "HKQuantityTypeIdentifierStepCount: ends before it starts": 1,
        "HKQuantityTypeIdentifierStepCount: impossible date": 1,
        "ActivitySummary: impossible date": 1,
    }


def test_ids_survive_a_change_of_units_and_time_zone(tmp_path: Path) -> None:
    walk = STEPS.replace("StepCount", "DistanceWalkingRunning")
    berlin = walk.replace("count", "km").replace("321", "1.609344")
    london = walk.replace("count", "mi").replace("321", "1").replace("08:0", "07:0").replace("+0100", "+0000")
    other = berlin.replace("1.609344", "1.7")
    first, second, third = read(write(tmp_path, document(berlin, london, other)))
    assert first.id == second.id != third.id
    assert first.id.version == 5


def test_a_twelve_hour_clock_is_read(tmp_path: Path) -> None:
    record = STEPS.replace("08:00:00 +0100", "12:00:00\u202fAM +0100").replace("08:05:00", "1:05:00 p.m.")
    [sample] = read(write(tmp_path, document(record)))
    assert isinstance(sample, Quantity)
    assert (sample.start, sample.end) == ("2024-03-01T00:00:00+01:00", "2024-03-01T13:05:00+01:00")


def test_apples_malformed_dtd_and_control_characters_are_read(tmp_path: Path) -> None:
    dtd = "<!DOCTYPE HealthData [\n<!ATTLIST VisionPrescription\n  type CDATA\n<!ELEMENT X EMPTY>\n]>\n"
    named = STEPS.replace("Annas", "An\x0bnas&#x0b;&#11;")
    [sample] = read(write(tmp_path, dtd + document(named)))
    assert isinstance(sample, Quantity)
    assert sample.source == "An nas Apple Watch"


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "content",
    [
        f'<!DOCTYPE HealthData [<!ENTITY l0 "lol">{LAUGHS}]><HealthData>{STEPS}<Me a="&l9;"/></HealthData>',
        f'<!DOCTYPE HealthData [<!ENTITY x SYSTEM "file:///etc/passwd">]><HealthData>{STEPS}&x;</HealthData>',
        f'<!DOCTYPE HealthData SYSTEM "http://127.0.0.1:1/x.dtd"><HealthData>{STEPS}&x;</HealthData>',
        f"<HealthData>{STEPS}{'<a>' * 100_000}",
        f'<HealthData>{STEPS}<Record value="{"9" * 10_000_000}"/></HealthData>',
        f"<!DOCTYPE HealthData [{'<!-- x -->' * 200_000}]>{document(STEPS)}",
        f'<!DOCTYPE HealthData []><!DOCTYPE HealthData [<!ENTITY x "y">]>{document(STEPS)}',
    ],
    ids=["billion-laughs", "external-entity", "external-dtd", "nesting", "huge-tag", "huge-dtd", "two-dtds"],
)
def test_hostile_files_end_in_an_error_that_says_where(tmp_path: Path, content: str) -> None:
    samples, damage = read_broken(write(tmp_path, content))
    assert len(samples) <= 1
    assert "lol" not in str(damage)
    assert "byte" in str(damage)


def test_another_root_is_refused(tmp_path: Path) -> None:
    samples, damage = read_broken(write(tmp_path, f"<a><HealthData>{STEPS}</HealthData></a>"))
    assert not samples
    assert "HealthData" in damage.reason


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    with path.open("w") as file:
        file.write("<HealthData>")
        for number in range(80_000):  # 25 MB
            file.write(STEPS.replace("321", str(number)) + "\n")
        file.write("</HealthData>")
    code = (
        "import sys, psutil; from pathlib import Path; from myhealth_cli.apple_health import Export\n"
        "rss = lambda: psutil.Process().memory_info().rss\n"
        "before = peak = rss()\n"
        "with Export(Path(sys.argv[1])) as export:\n"
        "    for count, _ in enumerate(export.samples(), 1):\n"
        "        peak = max(peak, rss()) if count % 5000 == 0 else peak\n"
        "print(count, peak - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    count, growth = map(int, done.stdout.split())
    assert count == 80_000
    assert growth < path.stat().st_size / 4
