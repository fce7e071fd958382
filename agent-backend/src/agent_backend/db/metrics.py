"""What can be measured: names, canonical units, what converts to them, and what cannot be right.

Migration `0003_health` holds the same list for SQL.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec

MetricName: TypeAlias = Literal[
    "steps",
    "active_energy",
    "basal_energy",
    "distance_walking_running",
    "flights_climbed",
    "exercise_time",
    "heart_rate",
    "resting_heart_rate",
    "hrv_sdnn",
    "body_mass",
    "vo2_max",
    "respiratory_rate",
    "oxygen_saturation",
    "body_temperature",
]

Conversion: TypeAlias = tuple[float, float]
"""canonical = given * first + second"""

_ENERGY = {"Cal": (1.0, 0.0), "kJ": (1 / 4.184, 0.0), "cal": (0.001, 0.0), "J": (1 / 4184, 0.0)}
_LENGTH = {"km": (1000.0, 0.0), "cm": (0.01, 0.0), "mi": (1609.344, 0.0), "ft": (0.3048, 0.0)}
_MASS = {"g": (0.001, 0.0), "lb": (0.45359237, 0.0), "st": (6.35029318, 0.0), "oz": (0.028349523125, 0.0)}
_RATE = {"count/min": (1.0, 0.0), "count/s": (60.0, 0.0)}
_MINUTES = {"s": (1 / 60, 0.0), "h": (60.0, 0.0), "hr": (60.0, 0.0)}
_OXYGEN_UPTAKE = {"mL/min·kg": (1.0, 0.0), "mL/kg/min": (1.0, 0.0), "ml/(kg*min)": (1.0, 0.0)}
_TEMPERATURE = {"degF": (5 / 9, -160 / 9), "K": (1.0, -273.15)}


class Metric(msgspec.Struct, frozen=True):
    """One metric. `maximum` is what no sample (of a cumulative metric: of up to 7 days) can exceed."""

    id: int
    name: MetricName
    unit: str
    cumulative: bool
    maximum: float
    digits: int
    """Decimals worth telling."""
    conversions: dict[str, Conversion]

    def convert(self, value: float, unit: str) -> float | None:
        """Return the value in the canonical unit; None when `unit` does not convert to it."""
        if unit == self.unit:
            return value
        conversion = self.conversions.get(unit)
        return None if conversion is None else value * conversion[0] + conversion[1]


METRICS: dict[MetricName, Metric] = {
    metric.name: metric
    for metric in (
        Metric(1, "steps", "count", True, 1e6, 0, {}),
        Metric(2, "active_energy", "kcal", True, 1e5, 0, _ENERGY),
        Metric(3, "basal_energy", "kcal", True, 1e5, 0, _ENERGY),
        Metric(4, "distance_walking_running", "m", True, 1e6, 0, _LENGTH),
        Metric(5, "flights_climbed", "count", True, 1e5, 0, {}),
        Metric(6, "exercise_time", "min", True, 10_080, 0, _MINUTES),
        Metric(7, "heart_rate", "bpm", False, 1000, 0, _RATE),
        Metric(8, "resting_heart_rate", "bpm", False, 1000, 0, _RATE),
        Metric(9, "hrv_sdnn", "ms", False, 10_000, 0, {"s": (1000.0, 0.0)}),
        Metric(10, "body_mass", "kg", False, 1000, 1, _MASS),
        Metric(11, "vo2_max", "ml/kg/min", False, 200, 1, _OXYGEN_UPTAKE),
        Metric(12, "respiratory_rate", "bpm", False, 1000, 1, _RATE),
        Metric(13, "oxygen_saturation", "%", False, 100, 1, {}),
        Metric(14, "body_temperature", "degC", False, 100, 1, _TEMPERATURE),
    )
}

assert tuple(METRICS) == get_args(MetricName)
