"""The forms of single values, against Go's own reading of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.config.toml_forms import (
    AutostopForm,
    DurationForm,
    Refused,
    SignalForm,
    SizeForm,
    format_duration,
)
from fly_emulator.config.toml_machines import clamped
from fly_emulator.config.toml_table_forms import (
    ConcurrencyForm,
    EnvForm,
    cast_string,
)
from fly_emulator.machine_config import duration_seconds


@given(st.integers(0, 2**53))
def test_a_duration_survives_writing_and_reading(nanoseconds: int) -> None:
    text = format_duration(nanoseconds)

    assert round(duration_seconds(text) * 1e9) == nanoseconds
    assert DurationForm("s").read(text) == (text, "")


@pytest.mark.parametrize(
    ("given_value", "unit", "expected"),
    [
        ("90s", "ns", "1m30s"),
        ("1m", "ns", "1m0s"),
        ("1h", "ns", "1h0m0s"),
        ("1.5h", "ns", "1h30m0s"),
        ("500ms", "ns", "500ms"),
        ("1500ms", "ns", "1.5s"),
        ("0", "ns", "0s"),
        ("", "ns", None),
        (5, "s", "5s"),
        (10000, "ms", "10s"),
        (2000.0, "ms", "2s"),
    ],
)
def test_durations_are_read_as_go_does(given_value: Any, unit: Any, expected: str | None) -> None:
    assert DurationForm(unit).read(given_value) == (expected, "")


@pytest.mark.parametrize(
    "value", ["10", "10 seconds", "-5s", "s", "1.2.3s", "1e3s", -1, True, [], {}, "9" * 400 + "s"]
)
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(Refused):
        DurationForm("ms").read(value)


def test_a_bare_number_of_nanoseconds_is_pointed_at() -> None:
    text, warning = DurationForm("ns").read(10000)

    assert text == "10µs"
    assert "nanoseconds" in warning


@given(st.integers(0, 10**15))
def test_clamping_keeps_what_is_within_and_is_done_once(nanoseconds: int) -> None:
    text = format_duration(nanoseconds)
    once = clamped(text)

    assert 1 <= duration_seconds(once) <= 60
    assert clamped(once) == once
    assert (once == text) == (10**9 <= nanoseconds <= 60 * 10**9)


@pytest.mark.parametrize(("value", "expected"), [("0s", "0s"), ("1ns", "1s"), ("2m", "1m0s")])
def test_a_grace_period_may_be_nothing(value: str, expected: str) -> None:
    assert clamped(value, zero=True) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (512, 512),
        ("512", 512),
        ("512mb", 512),
        ("512MB", 512),
        ("512 MiB", 512),
        ("1gb", 1024),
        ("1.5g", 1536),
        ("2GiB", 2048),
        ("1048576k", 1024),
    ],
)
def test_memory_counts_in_mebibytes(value: Any, expected: int) -> None:
    assert SizeForm("MiB").read(value) == (expected, "")


@pytest.mark.parametrize(
    ("value", "expected"), [(30, 30), ("30gb", 30), ("2g", 2), ("1500mb", 1), ("1tb", 1000)]
)
def test_volumes_count_in_decimal_gigabytes(value: Any, expected: int) -> None:
    assert SizeForm("GB").read(value) == (expected, "")


@pytest.mark.parametrize(
    "value", [0, "0", -1, "0mb", "lots", "1 000mb", 1.5, True, None, "1kb", "9" * 40 + "gb"]
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(Refused):
        SizeForm("MiB").read(value)


@pytest.mark.parametrize(
    ("value", "hint"), [("sigterm", "SIGTERM"), ("TERM", "SIGTERM"), (15, ""), ("SIGFOO", "")]
)
def test_a_signal_is_named_as_the_system_names_it(value: Any, hint: str) -> None:
    with pytest.raises(Refused) as refused:
        SignalForm().read(value)
    assert hint in refused.value.hint


def test_an_undocumented_signal_is_pointed_at() -> None:
    assert SignalForm().read("SIGTERM") == ("SIGTERM", "")
    assert "documents only" in SignalForm().read("SIGHUP")[1]


@pytest.mark.parametrize(("value", "word"), [(True, "stop"), (False, "off")])
def test_booleans_are_the_older_autostop(value: Any, word: str) -> None:
    assert AutostopForm().read(value) == (word, f'the older form: write "{word}"')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (0.5, "0.5"),
        (1e20, "1" + "0" * 20),
        (1e21, "1e+21"),
        (1e-05, "1e-05"),
        (True, "true"),
    ],
)
def test_values_are_written_as_go_writes_them(value: Any, text: str) -> None:
    assert cast_string(value) == text


def test_a_table_in_env_is_named() -> None:
    with pytest.raises(Refused) as refused:
        EnvForm().read({"GOOD": "1", "BAD": {"x": 1}})
    assert refused.value.under == "BAD"


@pytest.mark.parametrize("value", ["20", "a,b", 20, [], [{}], "1,2,3"])
def test_what_is_no_concurrency_is_refused(value: Any) -> None:
    with pytest.raises(Refused):
        ConcurrencyForm().read(value)
