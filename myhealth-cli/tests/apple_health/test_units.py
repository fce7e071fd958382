from __future__ import annotations

import pytest

from myhealth_cli.apple_health.units import METRICS, UnitError, convert


@pytest.mark.parametrize(
    ("metric", "value", "unit", "expected"),
    [
        ("ActiveEnergyBurned", "100", "kcal", 100.0),
        ("ActiveEnergyBurned", "100", "Cal", 100.0),
        ("ActiveEnergyBurned", "100000", "cal", 100.0),
        ("BasalEnergyBurned", "418.4", "kJ", 100.0),
        ("BasalEnergyBurned", "418400", "J", 100.0),
        ("DistanceWalkingRunning", "1.5", "km", 1500.0),
        ("DistanceWalkingRunning", "1", "mi", 1609.344),
        ("DistanceWalkingRunning", "100", "m", 100.0),
        ("DistanceWalkingRunning", "100", "ft", 30.48),
        ("DistanceWalkingRunning", "100", "yd", 91.44),
        ("DistanceWalkingRunning", "250", "cm", 2.5),
        ("BodyMass", "150", "lb", 68.0388555),
        ("BodyMass", "11", "st", 69.85322498),
        ("BodyMass", "70000", "g", 70.0),
        ("BodyTemperature", "98.6", "degF", 37.0),
        ("BodyTemperature", "37.2", "degC", 37.2),
        ("BodyTemperature", "310.15", "K", 37.0),
        ("HeartRate", "61", "count/min", 61.0),
        ("HeartRate", "1.5", "count/s", 90.0),
        ("RespiratoryRate", "0.25", "Hz", 15.0),
        ("OxygenSaturation", "0.97", "%", 97.0),
        ("OxygenSaturation", "97", "%", 97.0),
        ("HeartRateVariabilitySDNN", "41.5", "ms", 41.5),
        ("HeartRateVariabilitySDNN", "0.0415", "s", 41.5),
        ("AppleExerciseTime", "90", "s", 1.5),
        ("AppleExerciseTime", "0.5", "hr", 30.0),
        ("VO2Max", "42.1", "mL/min·kg", 42.1),
        ("StepCount", "120", "count", 120.0),
    ],
)
def test_units_convert_to_the_canonical_one(metric: str, value: str, unit: str, expected: float) -> None:
    found = convert(value, unit, METRICS[f"HKQuantityTypeIdentifier{metric}"])
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "-1", "1,5", "1e999"])
def test_values_that_are_no_amount_are_refused(value: str) -> None:
    with pytest.raises(UnitError):
        convert(value, "count", METRICS["HKQuantityTypeIdentifierStepCount"])


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_foreign_units_are_refused(metric: str) -> None:
    with pytest.raises(UnitError, match="furlong"):
        convert("1", "furlong", METRICS[metric])
