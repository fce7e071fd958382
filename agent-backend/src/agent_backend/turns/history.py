"""A session's stored messages as the history of a model call; pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agent_backend.engines.base import HistoryMessage
from agent_backend.transcript import StoredMessage

_ROLE: dict[str, Literal["user", "assistant", "system"]] = {
    "user": "user",
    "tool": "user",
    "assistant": "assistant",
    "system": "system",
}


class ToolCall(msgspec.Struct, frozen=True):
    """A call the model made; `input` is what it wrote, not yet validated."""

    id: str
    name: str
    input: dict[str, Any]


def for_model(stored: list[StoredMessage]) -> list[HistoryMessage]:
    """Return the messages as the provider wants them; neighbours of one role become one message.

    Content is joined as text, never decoded: thinking and its signatures stay as they came.
    """
    out: list[tuple[Literal["user", "assistant", "system"], list[str]]] = []
    for message in stored:
        role = _ROLE[message.role]
        if out and out[-1][0] == role:
            out[-1][1].append(message.content)
        else:
            out.append((role, [message.content]))
    return [HistoryMessage(role=role, content=msgspec.Raw(_join(parts).encode())) for role, parts in out]


def _join(arrays: list[str]) -> str:
    if len(arrays) == 1:
        return arrays[0]
    inner = (array.strip()[1:-1].strip() for array in arrays)
    return "[" + ",".join(part for part in inner if part) + "]"


def open_calls(stored: list[StoredMessage]) -> list[ToolCall]:
    """Return the calls of the last assistant message that have no result yet, in order."""
    answered: set[str] = set()
    for message in reversed(stored):
        if message.role == "tool":
            blocks: list[dict[str, Any]] = msgspec.json.decode(message.content)
            answered.update(block["tool_use_id"] for block in blocks)
        elif message.role == "assistant":
            blocks = msgspec.json.decode(message.content)
            return [
                ToolCall(block["id"], block["name"], block["input"])
                for block in blocks
                if block["type"] == "tool_use" and block["id"] not in answered
            ]
        elif message.role == "user":
            break
    return []
