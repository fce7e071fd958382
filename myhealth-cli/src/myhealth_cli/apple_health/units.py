"""Which HealthKit types become which of our metrics, and how their units convert.

Factors are exact by definition (international yard and pound, thermochemical calorie). In HealthKit's
unit strings "Cal" and "kcal" are the same large calorie, "cal" is a thousandth of it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from myhealth_cli.errors import MyHealthError


class Metric(NamedTuple):
    """One of our metrics: its name, canonical unit, and what kind of quantity it is."""

    name: str
    unit: str
    dimension: str


METRICS: Final[dict[str, Metric]] = {
    "HKQuantityTypeIdentifierStepCount": Metric("steps", "count", "count"),
    "HKQuantityTypeIdentifierActiveEnergyBurned": Metric("active_energy", "kcal", "energy"),
    "HKQuantityTypeIdentifierBasalEnergyBurned": Metric("basal_energy", "kcal", "energy"),
    "HKQuantityTypeIdentifierDistanceWalkingRunning": Metric("distance_walking_running", "m", "length"),
    "HKQuantityTypeIdentifierFlightsClimbed": Metric("flights_climbed", "count", "count"),
    "HKQuantityTypeIdentifierAppleExerciseTime": Metric("exercise_time", "min", "time"),
    "HKQuantityTypeIdentifierHeartRate": Metric("heart_rate", "bpm", "rate"),
    "HKQuantityTypeIdentifierRestingHeartRate": Metric("resting_heart_rate", "bpm", "rate"),
    "HKQuantityTypeIdentifierHeartRateVariabilitySDNN": Metric("hrv_sdnn", "ms", "time"),
    "HKQuantityTypeIdentifierBodyMass": Metric("body_mass", "kg", "mass"),
    "HKQuantityTypeIdentifierVO2Max": Metric("vo2_max", "ml/kg/min", "vo2"),
    "HKQuantityTypeIdentifierRespiratoryRate": Metric("respiratory_rate", "bpm", "rate"),
    "HKQuantityTypeIdentifierOxygenSaturation": Metric("oxygen_saturation", "%", "fraction"),
    "HKQuantityTypeIdentifierBodyTemperature": Metric("body_temperature", "degC", "temperature"),
}

ENERGY: Final = Metric("energy", "kcal", "energy")
LENGTH: Final = Metric("length", "m", "length")
SECONDS: Final = Metric("duration", "s", "time")
MINUTES: Final = Metric("duration", "min", "time")
COUNT: Final = Metric("count", "count", "count")

# To a base unit per dimension: kcal, m, kg, s, 1/min, ml/kg/min.
_FACTORS: Final[dict[str, dict[str, float]]] = {
    "count": {"count": 1.0},
    "energy": {"kcal": 1.0, "Cal": 1.0, "cal": 0.001, "kJ": 1 / 4.184, "J": 1 / 4184.0},
    "length": {
        "m": 1.0,
        "km": 1000.0,
        "cm": 0.01,
        "mi": 1609.344,
        "yd": 0.9144,
        "ft": 0.3048,
        "in": 0.0254,
    },
    "mass": {"kg": 1.0, "g": 0.001, "lb": 0.45359237, "oz": 0.028349523125, "st": 6.35029318},
    "time": {"s": 1.0, "ms": 0.001, "min": 60.0, "hr": 3600.0, "d": 86400.0},
    "rate": {"count/min": 1.0, "count/s": 60.0, "Hz": 60.0, "bpm": 1.0},
    "vo2": {"mL/min·kg": 1.0, "ml/kg/min": 1.0, "mL/kg/min": 1.0, "mL/kg·min": 1.0, "mL/(kg·min)": 1.0},
}


class UnitError(MyHealthError):
    """A value that is no finite number, or a unit its dimension does not have."""


def convert(value: str, unit: str, metric: Metric) -> float:
    """Give `value` (the attribute's text, in `unit`) in the metric's canonical unit.

    Fractions: HealthKit's "%" runs from 0 to 1, so up to 1 it is scaled by 100; some apps write percent.
    Raises UnitError.
    """
    number, dimension = _number(value), metric.dimension
    if dimension == "temperature":
        return _celsius(number, unit)
    if dimension == "fraction":
        if unit != "%":
            raise UnitError(f"unit {unit[:20]!r} is no fraction")
        return _tidy(number * 100.0) if number <= 1.0 else number
    factor = _FACTORS[dimension].get(unit)
    if factor is None:
        raise UnitError(f"unit {unit[:20]!r} is no unit of {dimension}")
    if dimension == "time":
        factor /= _FACTORS["time"][metric.unit]
    return number if factor == 1.0 else _tidy(number * factor)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UnitError("value is no number") from None
    if not math.isfinite(number) or number < 0:
        raise UnitError("value is not a finite number from 0 up")
    return number


def _celsius(number: float, unit: str) -> float:
    match unit:
        case "degC":
            return number
        case "degF":
            return _tidy((number - 32.0) / 1.8)
        case "K":
            return _tidy(number - 273.15)
        case _:
            raise UnitError(f"unit {unit[:20]!r} is no temperature")


def _tidy(number: float) -> float:
    # 12 significant digits: 0.97 * 100 is 97, and exports carry about 6.
    return float(f"{number:.12g}")
