"""What a client believes of a conversation, built from events alone, each checked as it comes."""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import Any


class Broken(AssertionError):
    """A promise was broken; the text says which, with the ids to look at."""


class Conversation:
    """What one client believes, built from events alone, each checked as it comes."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.cursor: tuple[int, int] = (0, 0)
        self.messages: dict[str, dict[str, Any]] = {}
        self.open: set[str] = set()
        self.run: str | None = None
        self.ended: Counter[str] = Counter()
        self.resyncs = 0
        self.waited_for: list[str] = []
        self.connection = 0
        self.trail: deque[str] = deque(maxlen=12)
        """The last events, for who reads of a broken promise: connection, type, cursor."""
        self._joining = False

    @property
    def after(self) -> str:
        """The cursor as the server gave it."""
        return f"{self.cursor[0]}-{self.cursor[1]}"

    def apply(self, event: dict[str, Any]) -> str | None:
        """Take an event; returns the run that it ended. Raises Broken."""
        metadata = event["metadata"]
        self.trail.append(f"{self.connection}:{event['type']}:{metadata.get('cursor')}")
        if metadata["threadId"] != self.session:
            raise Broken(f"event of {metadata['threadId']} in the stream of {self.session}")
        self._advance(metadata.get("cursor"), event)
        kind: str = event["type"]
        handler = getattr(self, "_on_" + kind.lower(), None)
        if handler is None:
            raise Broken(f"unexpected {kind} in {self.session}")
        return handler(event)

    def _advance(self, text: str | None, event: dict[str, Any]) -> None:
        if text is None:
            if event["type"] not in ("RUN_STARTED", "MESSAGES_SNAPSHOT"):
                raise Broken(f"{event['type']} without a cursor in {self.session}")
            return
        epoch, n = map(int, text.split("-"))
        if (epoch, n) <= self.cursor:
            raise Broken(f"cursor went from {self.after} to {text} in {self.session}: {list(self.trail)}")
        self.cursor = (epoch, n)

    def _need(self, condition: object, what: str) -> None:
        if not condition:
            raise Broken(f"{what} at {self.after} in {self.session}: {list(self.trail)}")

    def _on_run_started(self, event: dict[str, Any]) -> None:
        if "cursor" not in event["metadata"]:
            # Brought up to date by a snapshot: what was open is void.
            self.resyncs += 1
            self._joining = True
            self.open.clear()
            self.run = event["runId"]
            return
        self._need(self.run is None, f"run {event['runId']} began inside {self.run}")
        self._need(event["runId"] not in self.ended, f"run {event['runId']} began again")
        self.run = event["runId"]
        for message in event["input"]["messages"]:
            self.messages[message["id"]] = {**message}

    def _finish(self, run: str) -> str:
        self._need(not self.open, f"run {run} ended with {self.open} open")
        if not self._joining:
            self.ended[run] += 1
            self._need(self.ended[run] == 1, f"run {run} ended twice")
        else:
            self.ended[run] = 1
        self._joining = False
        self.run = None
        return run

    def _on_run_finished(self, event: dict[str, Any]) -> str:
        self._need(self.run == event["runId"], f"run {event['runId']} ended inside {self.run}")
        return self._finish(event["runId"])

    def _on_run_error(self, _event: dict[str, Any]) -> str:
        self._need(self.run, "an error outside any run")
        return self._finish(self.run or "")

    def _start(self, entity: str) -> None:
        self._need(self.run, f"{entity} outside any run")
        self._need(entity not in self.open, f"{entity} began twice")
        self.open.add(entity)

    def _end(self, entity: str) -> None:
        self._need(entity in self.open, f"{entity} ended without beginning")
        self.open.discard(entity)

    def _on_text_message_start(self, event: dict[str, Any]) -> None:
        self._start("text " + event["messageId"])
        self.messages[event["messageId"]] = {"role": "assistant", "content": ""}

    def _on_text_message_content(self, event: dict[str, Any]) -> None:
        self._need("text " + event["messageId"] in self.open, "text outside its message")
        self.messages[event["messageId"]]["content"] += event["delta"]

    def _on_text_message_end(self, event: dict[str, Any]) -> None:
        self._end("text " + event["messageId"])

    def _on_reasoning_start(self, event: dict[str, Any]) -> None:
        self._start("span " + event["messageId"])

    def _on_reasoning_message_start(self, event: dict[str, Any]) -> None:
        self._start("reasoning " + event["messageId"])
        self.messages[event["messageId"]] = {"role": "reasoning", "content": ""}

    def _on_reasoning_message_content(self, event: dict[str, Any]) -> None:
        self._need("reasoning " + event["messageId"] in self.open, "reasoning outside its message")
        self.messages[event["messageId"]]["content"] += event["delta"]

    def _on_reasoning_message_end(self, event: dict[str, Any]) -> None:
        self._end("reasoning " + event["messageId"])

    def _on_reasoning_end(self, event: dict[str, Any]) -> None:
        self._end("span " + event["messageId"])

    def _on_tool_call_start(self, event: dict[str, Any]) -> None:
        self._start("call " + event["toolCallId"])
        parent = self.messages.setdefault(event["parentMessageId"], {"role": "assistant"})
        parent.setdefault("toolCalls", []).append({"id": event["toolCallId"], "arguments": ""})

    def _on_tool_call_args(self, event: dict[str, Any]) -> None:
        self._need("call " + event["toolCallId"] in self.open, "arguments outside their call")
        for message in self.messages.values():
            for call in message.get("toolCalls", []):
                if call["id"] == event["toolCallId"]:
                    call["arguments"] += event["delta"]

    def _on_tool_call_end(self, event: dict[str, Any]) -> None:
        self._end("call " + event["toolCallId"])

    def _on_tool_call_result(self, event: dict[str, Any]) -> None:
        self._need("call " + event["toolCallId"] not in self.open, "a result before its call has ended")
        self._need(event["messageId"] not in self.messages, f"result {event['messageId']} came twice")
        self.messages[event["messageId"]] = {
            "role": "tool",
            "toolCallId": event["toolCallId"],
            "content": event["content"],
        }

    def _on_custom(self, event: dict[str, Any]) -> None:
        call = event["value"]["toolCallId"]
        self._need("call " + call not in self.open, "a call waits before it has ended")
        self._need(call not in self.waited_for, f"call {call} waits twice")
        self.waited_for.append(call)

    def _on_messages_snapshot(self, event: dict[str, Any]) -> None:
        self._need(not self.open, f"a snapshot while {self.open} is open")
        self.messages = {message["id"]: comparable(message) for message in event["messages"]}
        if "cursor" in event["metadata"]:
            self._joining = False


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what the stream tells in another form (its id, a tool's error mark)."""
    kept = {key: value for key, value in message.items() if key not in ("id", "error", "toolCalls")}
    if "toolCalls" in message:
        kept["toolCalls"] = [
            {"id": call["id"], "arguments": json.loads(call["function"]["arguments"])}
            for call in message["toolCalls"]
        ]
    return kept


def believed(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of the stream in the form of `comparable`."""
    out = {key: value for key, value in message.items() if key != "id"}
    if "toolCalls" in message:
        out["toolCalls"] = [
            {
                "id": call["id"],
                "arguments": call["arguments"]
                if isinstance(call["arguments"], dict)
                else json.loads(call["arguments"] or "{}"),
            }
            for call in message["toolCalls"]
        ]
    return out
