"""What AG-UI 1.0 allows, as strict clients enforce it, and what a client ends up with.

Every event is also read with the models of the PyPI package `ag-ui-protocol`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ag_ui.core.events import Event
from pydantic import TypeAdapter

from .client import Received

_models: TypeAdapter[Any] = TypeAdapter(Event)

_PAIRS = {
    "TEXT_MESSAGE_END": "TEXT_MESSAGE_START",
    "REASONING_MESSAGE_END": "REASONING_MESSAGE_START",
    "REASONING_END": "REASONING_START",
    "TOOL_CALL_END": "TOOL_CALL_START",
}
_INSIDE = {
    "TEXT_MESSAGE_CONTENT": "TEXT_MESSAGE_START",
    "REASONING_MESSAGE_CONTENT": "REASONING_MESSAGE_START",
    "TOOL_CALL_ARGS": "TOOL_CALL_START",
}
_OPENERS = frozenset(_PAIRS.values())
_ENDS = ("RUN_FINISHED", "RUN_ERROR")


def _entity(event: dict[str, Any]) -> str:
    return event["toolCallId"] if event["type"].startswith("TOOL_CALL") else event["messageId"]


class Verifier:
    """Feeds on one connection's events and asserts that each is legal where it comes."""

    def __init__(self, *, inside_run: bool = False) -> None:
        self._running = inside_run
        self._joined_late = inside_run
        self._open: dict[tuple[str, str], None] = {}
        self._last: tuple[int, int] = (0, 0)

    def feed(self, received: Received) -> None:
        """Assert that the next event is legal."""
        event = received.event
        _models.validate_python(event)
        self._check_cursor(received)
        kind = event["type"]
        if kind == "RUN_STARTED":
            assert not self._running, "RUN_STARTED while a run is active"
            assert not self._open
            self._running = True
            self._joined_late = False
            return
        assert self._running, f"{kind} outside of a run"
        if kind in _OPENERS:
            assert (kind, _entity(event)) not in self._open, f"{kind} twice for {_entity(event)}"
            self._open[kind, _entity(event)] = None
        elif kind in _PAIRS:
            place = (_PAIRS[kind], _entity(event))
            assert place in self._open or self._joined_late, f"{kind} for what is not open"
            self._open.pop(place, None)
        elif kind in _INSIDE:
            assert (_INSIDE[kind], _entity(event)) in self._open or self._joined_late, f"{kind} outside"
            assert event["delta"], "an empty delta"
        elif kind in _ENDS:
            assert not self._open, f"{kind} with {list(self._open)} open"
            self._running = False
        else:
            assert kind in ("TOOL_CALL_RESULT", "MESSAGES_SNAPSHOT", "CUSTOM"), f"unexpected {kind}"

    def _check_cursor(self, received: Received) -> None:
        metadata = received.event["metadata"]
        assert metadata.get("cursor") == received.cursor
        if received.cursor is not None:
            epoch, n = received.cursor.split("-")
            place = (int(epoch), int(n))
            assert place > self._last, f"cursor {place} after {self._last}"
            self._last = place


def verify(events: Iterable[Received], *, inside_run: bool = False) -> None:
    """Assert that a connection's events are legal; `inside_run`: it began with a cursor inside a run."""
    verifier = Verifier(inside_run=inside_run)
    for received in events:
        verifier.feed(received)


def fold(events: Iterable[Received], messages: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the conversation a client holds after these events, in the form of GET messages."""
    held: list[dict[str, Any]] = [dict(message) for message in messages or []]
    for received in events:
        _apply(received.event, held)
    return held


def _apply(event: dict[str, Any], held: list[dict[str, Any]]) -> None:
    match event["type"]:
        case "RUN_STARTED":
            known = {message["id"] for message in held}
            held.extend(m for m in event.get("input", {}).get("messages", []) if m["id"] not in known)
        case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
            # Fixed words of the server carry their notice behind a tilde.
            notice = event["messageId"].partition("~")[2]
            held.append({"id": event["messageId"], "role": event["role"], "content": ""})
            held[-1].update({"name": notice} if notice else {})
        case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
            _find(held, event["messageId"])["content"] += event["delta"]
        case "TOOL_CALL_START":
            parent = event["parentMessageId"]
            if not any(message["id"] == parent for message in held):
                held.append({"id": parent, "role": "assistant"})
            function = {"name": event["toolCallName"], "arguments": ""}
            call = {"id": event["toolCallId"], "type": "function", "function": function}
            _find(held, parent).setdefault("toolCalls", []).append(call)
        case "TOOL_CALL_ARGS":
            calls = (call for message in held for call in message.get("toolCalls", []))
            call = next(call for call in calls if call["id"] == event["toolCallId"])
            call["function"]["arguments"] += event["delta"]
        case "TOOL_CALL_RESULT":
            result = {key: event[key] for key in ("content", "toolCallId")}
            held.append({"id": event["messageId"], "role": "tool", **result})
        case "MESSAGES_SNAPSHOT":
            held[:] = event["messages"]
        case _:
            pass


def _find(held: list[dict[str, Any]], message_id: str) -> dict[str, Any]:
    return next(message for message in held if message["id"] == message_id)
