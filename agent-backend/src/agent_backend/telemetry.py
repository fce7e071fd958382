"""Logs and metrics.

Logs are JSON, one line each on stderr: a fixed `action`, ids and numbers. Values are cut to the length of
an id and errors are written as type and frames without their text, so that no message body, health value
or token can get out through a log line by accident.

Metrics are plain attributes that the code increments (`metrics.turns["completed"] += 1`); `exposition()`
turns them into Prometheus' text format when somebody asks, and imports prometheus_client only then.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

Value: TypeAlias = "str | int | float | bool | UUID | None"
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Report: TypeAlias = "Callable[[str, str, BaseException | None, dict[str, Value]], None]"
"""Takes part, action, exception and fields of what was logged as an error."""

_LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MAX_VALUE = 120
"""Long enough for any id, path template or type name; too short for a message."""
_MAX_FRAMES = 12

_encode = msgspec.json.Encoder().encode


class _Output:
    """Where log lines go, and what every line carries."""

    __slots__ = ("common", "report", "threshold")

    def __init__(self) -> None:
        self.threshold = _LEVELS["info"]
        self.common: dict[str, str] = {}
        self.report: Report | None = None


_output = _Output()


def configure(level: Level, **common: str) -> None:
    """Set the least level that is written and fields every line carries (machine, release)."""
    _output.threshold = _LEVELS[level]
    _output.common = common
    _capture_libraries(_LEVELS[level])


def also_report(report: Report | None) -> None:
    """Hand every error to `report` as well, which must not block and not raise; None: to nobody."""
    _output.report = report


class Log:
    """The log of one part of the system, such as `turns`."""

    __slots__ = ("part",)

    def __init__(self, part: str) -> None:
        self.part = part

    def debug(self, action: str, **fields: Value) -> None:
        """Write what only a developer wants to see."""
        if _output.threshold <= 10:
            self._write("debug", action, fields, None)

    def info(self, action: str, **fields: Value) -> None:
        """Write what has happened."""
        if _output.threshold <= 20:
            self._write("info", action, fields, None)

    def warning(self, action: str, *, error: BaseException | None = None, **fields: Value) -> None:
        """Write what went wrong and was dealt with."""
        if _output.threshold <= 30:
            self._write("warning", action, fields, error)

    def error(self, action: str, *, error: BaseException | None = None, **fields: Value) -> None:
        """Write what went wrong and somebody has to look at."""
        self._write("error", action, fields, error)
        metrics.errors[self.part] += 1
        if _output.report is not None:
            _output.report(self.part, action, error, fields)

    def _write(
        self, level: Level, action: str, fields: dict[str, Value], error: BaseException | None
    ) -> None:
        line: dict[str, object] = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "part": self.part,
            "action": action,
            **_output.common,
        }
        line.update((name, _plain(value)) for name, value in fields.items())
        if error is not None:
            line.update(describe(error))
        sys.stderr.write(_encode(line).decode() + "\n")


def _plain(value: Value) -> Value:
    if isinstance(value, str):
        # A lone surrogate cannot be encoded; a log line must not fail.
        return value[:_MAX_VALUE].encode("utf-8", "replace").decode()
    return value


def describe(error: BaseException) -> dict[str, object]:
    """Describe an exception without its text, which may quote a user: type, frames, cause's type."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    described: dict[str, object] = {
        "error": type(error).__name__,
        "frames": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    }
    cause = error.__cause__ or error.__context__
    if cause is not None:
        described["cause"] = type(cause).__name__
    return described


_SAID_ELSEWHERE = (
    "Exception in ASGI application",  # by web/operations.py, with the request's id
    "Traceback",  # of a failed start: by cli.py, in two lines
    "Application startup failed",
    "ASGI callable returned without completing handshake",  # of every refused WebSocket: web/operations.py
    "ASGI callable returned without completing response",  # cut on purpose: web/sse.py
)


_CLIENTS_FAULT = ("Invalid HTTP request", "Invalid UTF-8 sequence")
"""uvicorn's words for bytes that strangers send; nobody here has to look at them."""


class _LibraryHandler(logging.Handler):
    """Writes the stdlib logging of libraries in our form: the message's template, never its arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "uvicorn.error" and str(record.msg).startswith(_SAID_ELSEWHERE):
            return
        error = record.exc_info[1] if record.exc_info else None
        # Its first line: asyncio goes on with the repr of a future, and so with an exception's text.
        template = str(record.msg).strip().partition("\n")[0]
        fields: dict[str, Value] = {"logger": record.name, "template": template}
        log = Log("library")
        if record.name == "uvicorn.error" and str(record.msg).startswith(_CLIENTS_FAULT):
            log.debug("library_log", **fields)
        elif record.levelno >= _LEVELS["error"]:
            log.error("library_log", error=error, **fields)
        elif record.levelno >= _LEVELS["warning"]:
            log.warning("library_log", error=error, **fields)
        else:
            log.debug("library_log", **fields)


def _capture_libraries(threshold: int) -> None:
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(max(threshold, _LEVELS["warning"]))


# --- metrics ------------------------------------------------------------------------------------------


class Histogram:
    """Counts of observations at or below each bound, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return Prometheus' buckets: (upper bound, observations up to it)."""
        buckets: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            buckets.append((bound, seen))
        return buckets


class Metrics:
    """Every series this server has. Few on purpose: each one answers a question of a runbook."""

    def __init__(self) -> None:
        self.http_requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        """(operation, status) -> requests answered; 499 is a client that went away first."""
        self.turns: defaultdict[str, int] = defaultdict(int)
        """outcome -> turns ended."""
        self.safety_flags: defaultdict[str, int] = defaultdict(int)
        """category -> red flags answered with a fixed text; nothing about whose."""
        self.turn_seconds = Histogram(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
        self.streams_open = 0
        """SSE responses and WebSocket subscriptions being served."""
        self.sessions_owned = 0
        self.group_commit_seconds = Histogram(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
        self.segments_written = 0
        self.model_calls: defaultdict[str, int] = defaultdict(int)
        """outcome -> calls of the model."""
        self.model_tokens: defaultdict[str, int] = defaultdict(int)
        """kind (input, cache_read, cache_write, output) -> tokens."""
        self.model_cost_usd_micros = 0
        self.ledger_calls: defaultdict[str, int] = defaultdict(int)
        """state (settled, estimated, released) -> calls closed with their step."""
        self.orphans_charged = 0
        """Calls charged as estimated because their owner died or lost the session."""
        self.over_reserved = 0
        """Calls that came to more than was reserved for them: a bound that was none."""
        self.over_budget: defaultdict[str, int] = defaultdict(int)
        """scope -> model calls and messages that a budget did not allow."""
        self.budget: dict[tuple[str, str], int] = {}
        """(global_day or global_month, spent, reserved or left) -> micro-dollars, of all machines."""
        self.db_pool_in_use: Callable[[], int] = lambda: 0
        """Asked at each scrape; the app sets it once the pool is open."""
        self.limited: defaultdict[str, int] = defaultdict(int)
        """limit -> what was refused or, for streams and connections, cut because of it."""
        self.errors: defaultdict[str, int] = defaultdict(int)
        """part -> log lines of level error: each one is for somebody to look at."""
        self.error_reports: defaultdict[str, int] = defaultdict(int)
        """outcome (queued, dropped, lost) -> errors for Sentry; lost are those it did not take."""
        self.keys_fetch_failures = 0
        """How often the keys that tokens are checked with could not be fetched."""
        self.erasures: defaultdict[str, int] = defaultdict(int)
        """outcome (erased, put_off, key_refused) -> attempts at an erasure; put_off is tried again."""
        self.suspends = 0
        """How often this process had its machine suspended."""
        self.thaws = 0
        """How often this process found that it had stood still."""
        self.boot_seconds: dict[str, float] = {}
        """phase -> seconds since the process started."""


metrics = Metrics()

Sample: TypeAlias = tuple[dict[str, str], float]


def _counters(of: Metrics) -> Iterable[tuple[str, str, Sequence[Sample]]]:
    requests = [({"operation": op, "status": str(status)}, n) for (op, status), n in of.http_requests.items()]
    yield "http_requests", "Requests answered", requests
    yield "turns", "Turns ended", [({"outcome": outcome}, n) for outcome, n in of.turns.items()]
    flags: list[Sample] = [({"category": category}, n) for category, n in of.safety_flags.items()]
    yield "safety_flags", "Red flags answered with a fixed text", flags
    yield "segments_written", "Event segments committed", [({}, of.segments_written)]
    yield (
        "model_calls",
        "Model calls ended",
        [({"outcome": outcome}, n) for outcome, n in of.model_calls.items()],
    )
    yield "model_tokens", "Tokens billed", [({"kind": kind}, n) for kind, n in of.model_tokens.items()]
    yield (
        "ledger_calls",
        "Model calls closed",
        [({"state": state}, n) for state, n in of.ledger_calls.items()],
    )
    yield "ledger_orphans", "Model calls charged for who did not close them", [({}, of.orphans_charged)]
    yield "ledger_over_reserved", "Model calls beyond their worst case", [({}, of.over_reserved)]
    yield (
        "over_budget",
        "Model calls and messages refused",
        [({"scope": s}, n) for s, n in of.over_budget.items()],
    )
    yield "limited", "Refused by a limit", [({"limit": limit}, n) for limit, n in of.limited.items()]
    yield "errors", "Errors logged", [({"part": part}, n) for part, n in of.errors.items()]
    reports: list[Sample] = [({"outcome": outcome}, n) for outcome, n in of.error_reports.items()]
    yield "error_reports", "Errors for Sentry", reports
    yield (
        "keys_fetch_failures",
        "Times the keys for tokens could not be fetched",
        [({}, of.keys_fetch_failures)],
    )
    yield "erasures", "Attempts at an erasure", [({"outcome": name}, n) for name, n in of.erasures.items()]
    yield "suspends", "Times this process had its machine suspended", [({}, of.suspends)]
    yield "thaws", "Times this process had stood still", [({}, of.thaws)]
    yield "model_cost_usd", "Price of the model calls", [({}, of.model_cost_usd_micros / 1e6)]


def _gauges(of: Metrics) -> Iterable[tuple[str, str, Sequence[Sample]]]:
    yield "streams_open", "Readers being served", [({}, of.streams_open)]
    yield "sessions_owned", "Sessions this machine holds", [({}, of.sessions_owned)]
    yield "db_pool_in_use", "Database connections in use", [({}, of.db_pool_in_use())]
    budget: list[Sample] = [
        ({"scope": scope, "kind": kind}, micros / 1e6) for (scope, kind), micros in of.budget.items()
    ]
    yield "budget_usd", "How the global budgets stand", budget
    phases: list[Sample] = [({"phase": phase}, seconds) for phase, seconds in of.boot_seconds.items()]
    yield "boot_seconds", "Seconds from process start to the end of a boot phase", phases


def exposition(of: Metrics = metrics) -> bytes:
    """Return all series in Prometheus' text format, version 0.0.4."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - not needed to boot
    from prometheus_client.core import (  # noqa: PLC0415 - see above
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

    class Collector:
        def collect(self) -> Iterable[Metric]:
            for kind, series in ((CounterMetricFamily, _counters(of)), (GaugeMetricFamily, _gauges(of))):
                for name, text, samples in series:
                    family = kind(name, text)
                    for labels, value in samples:
                        family.add_sample(
                            name + ("_total" if kind is CounterMetricFamily else ""), labels, value
                        )
                    yield family
            histograms = (
                ("turn_seconds", "Duration of turns", of.turn_seconds),
                ("group_commit_seconds", "Duration of group commits", of.group_commit_seconds),
            )
            for name, text, histogram in histograms:
                yield HistogramMetricFamily(name, text, histogram.cumulative(), histogram.total)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())  # pyright: ignore[reportArgumentType]
    return generate_latest(registry)


_IMPORTED = time.monotonic()


def note_boot_phase(phase: str) -> None:
    """Record that a phase of the boot has ended, in seconds since the process was started."""
    metrics.boot_seconds[phase] = time.monotonic() - _process_start()


def note_first(phase: str) -> None:
    """Record what the first turn after the boot has reached; later turns change nothing."""
    if phase not in metrics.boot_seconds:
        note_boot_phase(phase)


def _process_start() -> float:
    """Return when the process was started, on the monotonic clock; without /proc: when we were imported."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8")
        ticks_after_boot = int(stat.rpartition(")")[2].split()[19])
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    age = now - ticks_after_boot / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age
