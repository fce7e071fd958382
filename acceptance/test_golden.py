"""The golden streams are what the server sends, and legal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from . import golden, node
from .client import Received
from .stack import Site
from .verifier import fold, verify

NAMES = (*golden.PLAYS, "takeover")


def stream(name: str) -> list[Received]:
    lines = (golden.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Received(json.loads(line)["metadata"].get("cursor"), line) for line in lines]


async def test_recorded_again_they_are_the_same(site: Site) -> None:
    recorded = await golden.record(site)
    assert set(recorded) == set(NAMES) == {path.stem for path in golden.FOLDER.glob("*.jsonl")}
    for name, content in recorded.items():
        there = (golden.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
        assert content == there, f"{name}: run `python -m acceptance.golden` if this change is meant"


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_stream_is_legal(name: str) -> None:
    events = stream(name)
    verify(events)
    assert events[-1].type in ("RUN_FINISHED", "RUN_ERROR")
    # The verifier is worth something: without any one beginning or end the stream is not.
    for i, event in enumerate(events):
        if event.type.endswith(("_START", "_STARTED", "_END")):
            with pytest.raises(AssertionError):
                verify([*events[:i], *events[i + 1 :]])


async def test_the_npm_client_ends_up_with_the_same_conversation() -> None:
    """But for thoughts: it keeps those it was shown although a snapshot leaves them out."""
    node.require()
    streams = [stream(name) for name in NAMES]
    held = await node.verified(streams)
    assert list(map(_spoken, held)) == [_spoken(fold(events)) for events in streams]


def _spoken(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["role"] != "reasoning"]
