"""Errors reach somebody: what `Log.error` is told also goes to Sentry, where SENTRY_DSN is set.

An event is put together here, from a list of what may leave: types and frames of exceptions (module,
function, line), never their text; part and action; ids. The SDK only carries it: without integrations,
breadcrumbs, scopes, local variables or source lines, and what it adds is taken off before it is sent.

The event loop only builds a small dict and puts it into a bounded queue. A thread, which does not exist
before the first error, imports the SDK and hands events to it. What Sentry does not take is counted.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from agent_backend import telemetry
from agent_backend.credentials import looks_secret
from agent_backend.settings import Settings
from agent_backend.telemetry import Value, metrics

if TYPE_CHECKING:
    from types import TracebackType

    from sentry_sdk.client import BaseClient

_QUEUE = 64
_BURST = 30
_PER_SECOND = 0.5
"""A storm of errors says the same again and again: 30 at once, then one every two seconds."""
_SEND_SECONDS = 5
_MAX_FRAMES = 40
_MAX_CHAIN = 4

_TAGS = frozenset(
    {
        "call_id",
        "logger",
        "operation",
        "receipt",
        "request_id",
        "session_id",
        "status",
        "tool",
        "turn_id",
        "work",
    }
)
"""Fields of log lines that become tags. Others stay in the log."""
_TAG_VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_KEPT = frozenset(
    {"environment", "event_id", "exception", "level", "message", "platform", "release", "tags", "timestamp"}
)
_OWN_LOGGERS = ("sentry_sdk", "urllib3")
"""What the SDK says about its own trouble is logged, and not sent where it cannot be sent."""


class Reporter:
    """Sends errors to one Sentry project. Every method may be called from any thread; none raises."""

    def __init__(self, settings: Settings) -> None:
        self._dsn = settings.sentry_dsn
        self._environment: str = settings.environment
        self._release = settings.release
        self._common = {"app": settings.app_name, "machine": settings.machine_id}
        self._events: queue.Queue[dict[str, Any]] = queue.Queue(_QUEUE)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._client: BaseClient | None = None
        self._failing = False
        """The last event could not be sent: nobody waits for the next."""
        self._allowed, self._asked = float(_BURST), time.monotonic()

    def report(
        self, part: str, action: str, error: BaseException | None, fields: Mapping[str, Value]
    ) -> None:
        """Queue an event for what was logged, or drop it."""
        if str(fields.get("logger", "")).partition(".")[0] in _OWN_LOGGERS:
            return
        if not self._may():
            metrics.error_reports["dropped"] += 1
            return
        try:
            self._events.put_nowait(self._event(part, action, error, fields))
        except queue.Full:
            metrics.error_reports["dropped"] += 1
            return
        metrics.error_reports["queued"] += 1
        self._have_thread()

    def close(self, seconds: float) -> None:
        """Wait up to `seconds` until what is queued has been sent; not where nothing can be sent."""
        deadline = time.monotonic() + seconds
        with self._events.all_tasks_done:
            while self._events.unfinished_tasks and not self._failing:
                if (left := deadline - time.monotonic()) <= 0:
                    return
                self._events.all_tasks_done.wait(min(left, 0.05))
        if self._client is not None and not self._failing:
            self._client.flush(timeout=max(0.0, deadline - time.monotonic()))

    def _may(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._allowed = min(_BURST, self._allowed + (now - self._asked) * _PER_SECOND)
            self._asked = now
            if self._allowed < 1:
                return False
            self._allowed -= 1
            return True

    def _event(
        self, part: str, action: str, error: BaseException | None, fields: Mapping[str, Value]
    ) -> dict[str, Any]:
        tags = {name: tag for name, value in fields.items() if name in _TAGS and (tag := _tag(value))}
        event: dict[str, Any] = {
            "event_id": uuid4().hex,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "platform": "python",
            "level": "error",
            "environment": self._environment,
            "release": self._release,
            "tags": {**self._common, "part": part, "action": action, **tags},
        }
        if error is None:
            event["message"] = f"{part}: {action}"
        else:
            # Where Sentry shows an exception's text stands what we call the event.
            event["exception"] = {"values": chain(error, f"{part}: {action}")}
        return event

    def _have_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sentry", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            event = self._events.get()
            try:
                if self._client is None:
                    self._client = self._make_client()
                self._client.capture_event(event)
            except Exception:  # noqa: BLE001 - whatever is wrong with Sentry, the server goes on
                self._lost()
            finally:
                self._events.task_done()

    def _make_client(self) -> BaseClient:
        from sentry_sdk.client import Client  # noqa: PLC0415 - 50 ms and 3 MB that most machines never need
        from sentry_sdk.transport import HttpTransport  # noqa: PLC0415 - see above

        lost, sent = self._lost, self._sent

        class Transport(HttpTransport):
            TIMEOUT = _SEND_SECONDS

            def on_dropped_event(self, _reason: str) -> None:
                lost()

            def _update_headers(self, headers: dict[str, str]) -> None:
                super()._update_headers(headers)
                # Errors are rare: a kept connection is stale by the next one, above all after a suspend.
                headers["Connection"] = "close"

            def _handle_response(self, response: Any, envelope: Any) -> None:
                sent()
                super()._handle_response(response=response, envelope=envelope)

        return Client(
            dsn=self._dsn.reveal(),
            transport=Transport,
            transport_queue_size=_QUEUE,
            environment=self._environment,
            release=self._release,
            server_name=self._common["machine"],
            before_send=only_ours,
            default_integrations=False,
            auto_enabling_integrations=False,
            max_breadcrumbs=0,
            include_local_variables=False,
            include_source_context=False,
            attach_stacktrace=False,
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,
            propagate_traces=False,
            spotlight=False,
            debug=False,
        )

    def _lost(self) -> None:
        self._failing = True
        metrics.error_reports["lost"] += 1

    def _sent(self) -> None:
        self._failing = False


def only_ours(event: Any, _hint: Any = None) -> Any:
    """Take off what the SDK has added to an event: host, packages, whatever its next release adds."""
    return {name: value for name, value in event.items() if name in _KEPT}


def chain(error: BaseException, name: str) -> list[dict[str, Any]]:
    """Return an exception and what led to it, oldest first, as Sentry wants it: types and frames, no text."""
    values: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(values) < _MAX_CHAIN:
        kind = type(current)
        value: dict[str, Any] = {"type": kind.__name__, "module": kind.__module__, "value": name}
        if frames := _frames(current.__traceback__):
            value["stacktrace"] = {"frames": frames}
        values.append(value)
        if isinstance(current, BaseExceptionGroup) and current.exceptions:  # pyright: ignore[reportUnnecessaryIsInstance]
            current = current.exceptions[0]
        else:
            current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return values[::-1]


def _frames(traceback: TracebackType | None) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", "?"))
        frames.append(
            {
                "module": module,
                "function": code.co_name,
                "lineno": traceback.tb_lineno,
                "in_app": module.partition(".")[0] == "agent_backend",
            }
        )
        traceback = traceback.tb_next
    return frames[-_MAX_FRAMES:]


def _tag(value: Value) -> str | None:
    """Return a field as a tag; None for whatever is longer or other than an id or a name."""
    text = str(value) if isinstance(value, (UUID, int, str)) else ""
    return text if _TAG_VALUE.fullmatch(text) and not looks_secret(text) else None


def install(settings: Settings) -> Reporter | None:
    """Send errors from now on, if there is a DSN; the caller closes what is returned."""
    if not settings.sentry_dsn:
        telemetry.also_report(None)
        return None
    # Each send that fails is told twice otherwise; what counts is in `error_reports`.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    reporter = Reporter(settings)
    telemetry.also_report(reporter.report)
    return reporter
