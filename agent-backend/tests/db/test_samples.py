from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent_backend.db.samples import check
from agent_backend.errors import InvalidRequest

from ..health_data import at, parsed, quantity, sleep, summary, workout

NOW = at("2026-05-01T12:00")
RIGHT = quantity("steps", "2026-01-02T10:00", "2026-01-02T11:00", 10)
RUN = workout("running", "2026-01-02T10:00", "2026-01-02T11:00")


@pytest.mark.parametrize(
    ("field", "sample"),
    [
        ("end", RIGHT | {"end": "2026-01-02T09:59:59Z"}),
        ("end", RIGHT | {"end": "2026-01-09T10:00:01Z"}),
        ("end", RIGHT | {"start": "2026-05-02T11:00:00Z", "end": "2026-05-02T12:00:01Z"}),
        ("start", RIGHT | {"start": "1899-12-31T23:59:59Z"}),
        ("start", RIGHT | {"start": "0001-01-01T00:00:00+14:00", "end": "0001-01-01T00:00:00+14:00"}),
        ("end", RIGHT | {"end": "9999-12-31T23:59:59-14:00"}),
        ("value", RIGHT | {"value": -0.1}),
        ("value", RIGHT | {"value": 1_000_001}),
        ("value", quantity("oxygen_saturation", "2026-01-02", "2026-01-02", 100.1)),
        ("value", quantity("body_mass", "2026-01-02", "2026-01-02", 80_000)),
        ("unit", RIGHT | {"unit": "kcal"}),
        ("source", RIGHT | {"source": "a\u0000b"}),
        ("source", RIGHT | {"source": "a\nb"}),
        ("source", RIGHT | {"source": "  "}),
        ("activity", RUN | {"activity": "run\x7f"}),
        ("note", RUN | {"note": "a\x08"}),
        ("date", summary("2026-05-04", 1)),
        ("date", summary("1899-12-31", 1)),
        ("start", sleep("core", "1800-01-01", "1800-01-01")),
    ],
)
def test_a_wrong_field_is_named_with_its_index(field: str, sample: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(parsed([RIGHT, sample, RIGHT]), NOW)
    assert [error.field for error in refused.value.errors] == [f"$.samples[1].{field}"]
    assert refused.value.detail.startswith(f"$.samples[1].{field}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "mood"},
        {"id": "1"},
        {"metric": "mood"},
        {"start": "2026-01-02T10:00:00"},
        {"value": "10"},
        {"value": 1e300},
        {"source": ""},
        {"source": "x" * 121},
        {"device": "fridge"},
        {"extra": 1},
    ],
)
def test_a_wrong_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        parsed([RIGHT | change])


@pytest.mark.parametrize("text", ["1e999", "NaN", "Infinity", "-1e999"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    body = (
        msgspec.json.encode([RIGHT])
        .replace(b'"value":10.0', b'"value":10')
        .replace(b'"value":10', f'"value":{text}'.encode())
    )
    with pytest.raises(msgspec.DecodeError):
        parsed(msgspec.Raw(body))  # pyright: ignore[reportArgumentType]


def test_many_wrong_samples_are_named_up_to_a_bound() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(parsed([RIGHT | {"unit": "x"}] * 30), NOW)
    assert [error.field for error in refused.value.errors] == [f"$.samples[{n}].unit" for n in range(20)]


@pytest.mark.parametrize(
    ("metric", "value", "unit", "expected"),
    [
        ("active_energy", 418.4, "kJ", 100),
        ("active_energy", 100, "Cal", 100),
        ("active_energy", 100_000, "cal", 100),
        ("distance_walking_running", 1, "mi", 1609.344),
        ("distance_walking_running", 1.5, "km", 1500),
        ("body_mass", 100, "lb", 45.359237),
        ("body_mass", 80_000, "g", 80),
        ("body_temperature", 98.6, "degF", 37),
        ("body_temperature", 310.15, "K", 37),
        ("heart_rate", 60, "count/min", 60),
        ("heart_rate", 1, "count/s", 60),
        ("exercise_time", 0.5, "h", 30),
        ("hrv_sdnn", 0.05, "s", 50),
        ("vo2_max", 40, "mL/min·kg", 40),
    ],
)
def test_units_convert_to_the_metrics_own(metric: Any, value: float, unit: str, expected: float) -> None:
    sample = quantity(metric, "2026-01-02", "2026-01-02", value, unit=unit)
    assert check(parsed([sample]), NOW).rows.quantities[0].v == pytest.approx(expected)


def test_ordinary_names_and_notes_pass() -> None:
    rows = check(
        parsed([RUN | {"source": "Zoë\u2019s Apple\u00a0Watch 👩‍🚀", "note": "two\nlines\tand more"}]), NOW
    ).rows
    assert rows.sources[0].name == "Zoë\u2019s Apple\u00a0Watch 👩‍🚀"
    assert rows.workouts[0].note == "two\nlines\tand more"
