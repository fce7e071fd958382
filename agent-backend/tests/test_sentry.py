from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.sentry import Reporter, _tag, chain, install, only_ours
from agent_backend.telemetry import metrics

from .web.serving import settings_for

DSN = "http://0123abcd@127.0.0.1:1/7"


class Kept(Reporter):
    """Keeps its events instead of starting the thread that sends them."""

    def _have_thread(self) -> None:
        pass

    def kept(self) -> list[dict[str, Any]]:
        return [self._events.get_nowait() for _ in range(self._events.qsize())]


@pytest.fixture
def reporter(tmp_path: Path) -> Kept:
    return Kept(settings_for(tmp_path, SENTRY_DSN=DSN, RELEASE="0123abc"))


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_an_exception_is_told_by_types_and_frames_oldest_first() -> None:
    error = raised(KeyError("my blood pressure"), raised(ValueError("142 mmHg")))
    cause, last = chain(error, "turns: broken")
    assert (cause["type"], last["type"]) == ("ValueError", "KeyError")
    assert last["value"] == "turns: broken"
    (frame,) = last["stacktrace"]["frames"]
    assert (frame["function"], frame["in_app"]) == ("raised", False)
    assert "blood" not in json.dumps([cause, last])
    assert "mmHg" not in json.dumps([cause, last])


def test_a_group_leads_to_its_first_error_and_a_circle_ends() -> None:
    group = ExceptionGroup("secret", [raised(ValueError("x")), TypeError("y")])
    assert [each["type"] for each in chain(group, "n")] == ["ValueError", "ExceptionGroup"]
    one, two = ValueError("x"), TypeError("y")
    one.__cause__, two.__cause__ = two, one
    assert len(chain(one, "n")) == 4
    hidden = raised(ValueError("x"), TypeError("y"))
    hidden.__cause__ = None  # as `raise ... from None` leaves it
    hidden.__context__ = TypeError("y")
    hidden.__suppress_context__ = True
    assert len(chain(hidden, "n")) == 1


def test_only_ids_and_names_become_tags(reporter: Kept) -> None:
    reporter.report(
        "turns",
        "broken",
        None,
        {
            "turn_id": UUID(int=7),
            "status": 500,
            "tool": "my blood pressure is high",
            "request_id": "sk-ant-0123456789",
            "operation": "a" * 65,
            "amount": 142,
            "session_id": None,
        },
    )
    (event,) = reporter.kept()
    assert event["message"] == "turns: broken"
    assert event["tags"] == {
        "app": "myhealth-agents",
        "machine": event["tags"]["machine"],
        "part": "turns",
        "action": "broken",
        "turn_id": str(UUID(int=7)),
        "status": "500",
    }


@given(st.text(max_size=80))
def test_a_tag_holds_no_sentence(text: str) -> None:
    tag = _tag(text)
    assert tag is None or (tag == text and re.fullmatch(r"[\w.:-]{1,64}", tag, re.ASCII))


def test_a_storm_is_told_in_part_and_counted(reporter: Kept) -> None:
    before = dict(metrics.error_reports)
    for _ in range(200):
        reporter.report("turns", "broken", None, {})
    assert 30 <= len(reporter.kept()) < 40
    queued, dropped = (metrics.error_reports[kind] - before.get(kind, 0) for kind in ("queued", "dropped"))
    assert queued + dropped == 200


def test_what_the_sdk_says_of_itself_is_not_sent(reporter: Kept) -> None:
    for logger in ("sentry_sdk.errors", "urllib3.connectionpool"):
        reporter.report("library", "library_log", None, {"logger": logger})
    reporter.report("library", "library_log", None, {"logger": "asyncio"})
    assert [event["tags"]["logger"] for event in reporter.kept()] == ["asyncio"]


def test_what_the_sdk_adds_is_taken_off() -> None:
    event = {"level": "error", "server_name": "host", "modules": {}, "user": {}, "contexts": {}, "extra": {}}
    assert only_ours(event, {}) == {"level": "error"}


def test_without_a_dsn_nothing_is_installed(tmp_path: Path) -> None:
    assert install(settings_for(tmp_path)) is None


def test_a_reporter_without_errors_closes_at_once(tmp_path: Path) -> None:
    Reporter(settings_for(tmp_path, SENTRY_DSN=DSN)).close(60)
