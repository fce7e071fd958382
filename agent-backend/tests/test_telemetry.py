from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent_backend import telemetry
from agent_backend.telemetry import Histogram, Log, Metrics, configure, exposition

log = Log("test")


@pytest.fixture(autouse=True)
def unchanged() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    configure("info")
    root.handlers, root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_action_ids_and_what_every_line_carries(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", machine="m1")
    log.info("turn_completed", turn_id=UUID(int=7), seconds=1.5, cached=True)
    (line,) = lines(capsys)
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "info",
        "part": "test",
        "action": "turn_completed",
        "machine": "m1",
        "turn_id": "00000000-0000-0000-0000-000000000007",
        "seconds": 1.5,
        "cached": True,
    }


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line["action"] for line in lines(capsys)] == ["c", "d"]


def test_a_value_is_cut_and_cannot_break_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("x", value="line\nbreak \ud800 " + "long " * 100)
    (line,) = lines(capsys)
    assert len(line["value"]) == 120


def _fail(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as error:
        raise ValueError(text) from error


def test_an_error_is_described_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        _fail("my blood pressure")
    except ValueError as error:
        log.warning("broken", error=error)
    written = capsys.readouterr().err
    assert "blood" not in written
    line = json.loads(written)
    assert (line["error"], line["cause"]) == ("ValueError", "KeyError")
    assert line["frames"][-1].startswith("test_telemetry.py:")


def test_libraries_are_written_in_our_form_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info")
    logging.getLogger("some.library").warning("lost %s", "my blood pressure")
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n")
    logging.getLogger("uvicorn.error").error("Invalid UTF-8 sequence received from client.")
    (line,) = lines(capsys)
    assert (line["logger"], line["template"]) == ("some.library", "lost %s")


async def test_what_asyncio_says_of_a_lost_error_does_not_quote_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info")
    lost = asyncio.get_running_loop().create_future()
    lost.set_exception(ValueError("my blood pressure"))
    del lost
    (line,) = lines(capsys)
    assert line["template"] == "Future exception was never retrieved"
    assert (line["level"], line["error"]) == ("error", "ValueError")


def test_an_error_is_counted_and_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []

    def keep(*what: object) -> None:
        told.append(what)

    telemetry.also_report(keep)
    before = telemetry.metrics.errors["test"]
    error = ValueError("x")
    log.error("broken", error=error, n=1)
    log.warning("mended", error=error)
    telemetry.also_report(None)
    log.error("unheard")
    assert told == [("test", "broken", error, {"n": 1})]
    assert telemetry.metrics.errors["test"] == before + 2
    assert len(lines(capsys)) == 3


def test_a_histogram_counts_up_to_and_including_each_bound() -> None:
    histogram = Histogram(0.1, 1)
    for seconds in (0.05, 0.1, 0.5, 1, 30):
        histogram.observe(seconds)
    assert histogram.cumulative() == [("0.1", 2), ("1", 4), ("+Inf", 5)]
    assert histogram.total == pytest.approx(31.65)


def test_the_exposition_has_every_series_by_its_name() -> None:
    metrics = Metrics()
    metrics.http_requests["get", 200] += 3
    metrics.turns["completed"] += 1
    metrics.turn_seconds.observe(3)
    metrics.model_calls["ok"] += 1
    metrics.model_tokens["input"] += 12
    metrics.model_cost_usd_micros += 1_500_000
    metrics.boot_seconds["ready"] = 0.25
    metrics.db_pool_in_use = lambda: 4
    text = exposition(metrics).decode()
    for line in (
        'http_requests_total{operation="get",status="200"} 3.0',
        'turns_total{outcome="completed"} 1.0',
        'turn_seconds_bucket{le="5"} 1.0',
        "turn_seconds_count 1.0",
        "streams_open 0.0",
        "sessions_owned 0.0",
        "group_commit_seconds_count 0.0",
        "segments_written_total 0.0",
        'model_calls_total{outcome="ok"} 1.0',
        'model_tokens_total{kind="input"} 12.0',
        "model_cost_usd_total 1.5",
        "db_pool_in_use 4.0",
        'boot_seconds{phase="ready"} 0.25',
    ):
        assert line in text.splitlines()


def test_the_page_on_monitoring_names_series_that_exist() -> None:
    metrics = Metrics()
    for each in (
        metrics.turns,
        metrics.safety_flags,
        metrics.model_calls,
        metrics.over_budget,
        metrics.errors,
    ):
        each["x"] += 1
    metrics.http_requests["x", 500] += 1
    metrics.model_tokens["x"] += 1
    metrics.limited["x"] += 1
    metrics.error_reports["x"] += 1
    metrics.boot_seconds["x"] = 1
    metrics.budget["x", "left"] = 1
    exposed = {re.split(r"[{ ]", line)[0] for line in exposition(metrics).decode().splitlines()}
    page = (Path(__file__).resolve().parents[2] / "docs/design/monitoring.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![a-z_])([a-z_]+)(?:\[\d+[mhd]\]|\{[a-z]+=)", page))
    named |= set(re.findall(r"\b[a-z_]+_(?:total|bucket)\b", page)) | {"db_pool_in_use", "streams_open"}
    ours = {name for name in named if not name.startswith("fly_")}
    assert len(ours) >= 15
    assert ours <= exposed, ours - exposed


def test_boot_phases_are_counted_from_the_start_of_the_process() -> None:
    telemetry.note_boot_phase("first")
    telemetry.note_boot_phase("second")
    first, second = (telemetry.metrics.boot_seconds.pop(phase) for phase in ("first", "second"))
    assert 0 < first <= second + 0.02  # the kernel counts process starts in hundredths of a second
