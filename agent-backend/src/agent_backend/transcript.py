"""Stored messages (the provider's content blocks) as AG-UI messages; pure.

The ids given here are those the live stream uses: a client that followed the stream and one that got a
snapshot hold the same conversation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


class StoredMessage(NamedTuple):
    """A row of `messages`: `role` user | assistant | tool | system, `content` a JSON array of blocks."""

    n: int
    id: str
    turn_id: str
    role: str
    content: str


def block_id(message_id: str, index: int) -> str:
    """Return the AG-UI message id of block `index` of an assistant message."""
    return message_id if index == 0 else f"{message_id}.{index}"


def to_agui(stored: list[StoredMessage]) -> list[dict[str, Any]]:
    """Return the visible messages: the server's own context messages (role system) are left out."""
    out: list[dict[str, Any]] = []
    for message in stored:
        blocks: list[dict[str, Any]] = msgspec.json.decode(message.content)
        match message.role:
            case "user":
                out.append({"id": message.id, "role": "user", "content": _plain_text(blocks)})
            case "tool":
                out.extend(_tool_messages(message.id, blocks))
            case "assistant":
                out.extend(_assistant_messages(message.id, blocks))
                if notice := notice_of(message.id):
                    out[-1]["name"] = notice
            case _:
                pass
    return out


def with_notice(message_id: str, notice: str) -> str:
    """Return the id of a message that is a fixed text of ours; `notice` says why it was said.

    The mark is in the id, because the content goes to the provider as it is.
    """
    return f"{message_id}~{notice}"


def notice_of(message_id: str) -> str | None:
    """Return why a fixed text was said; None for a message of the model's own."""
    return message_id.partition("~")[2] or None


def _plain_text(blocks: list[dict[str, Any]]) -> str:
    return "\n\n".join(block["text"] for block in blocks if block["type"] == "text")


def _tool_messages(message_id: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        content = block.get("content", "")
        text = content if isinstance(content, str) else _plain_text(content)
        entry = {
            "id": block_id(message_id, index),
            "role": "tool",
            "toolCallId": block["tool_use_id"],
            "content": text,
        }
        if block.get("is_error"):
            entry["error"] = text
        out.append(entry)
    return out


def _assistant_messages(message_id: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    speaking: dict[str, Any] | None = None
    for index, block in enumerate(blocks):
        own_id = block_id(message_id, index)
        match block["type"]:
            case "text":
                speaking = {"id": own_id, "role": "assistant", "content": block["text"]}
                out.append(speaking)
            case "thinking":
                out.append({"id": own_id, "role": "reasoning", "content": block["thinking"]})
            case "tool_use":
                if speaking is None:
                    speaking = {"id": own_id, "role": "assistant"}
                    out.append(speaking)
                calls: list[dict[str, Any]] = speaking.setdefault("toolCalls", [])
                arguments = msgspec.json.encode(block["input"]).decode()
                calls.append(
                    {
                        "id": block["id"],
                        "type": "function",
                        "function": {"name": block["name"], "arguments": arguments},
                    }
                )
            case _:
                pass
    return out
