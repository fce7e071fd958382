"""Validation of content blocks and of the conversation's shape.

Rules: Messages API reference and "Handle tool use"; placement of `role: "system"` messages: "Mid-conversation
system messages" of the API guide. Error texts as quoted in public issue threads (see the design page).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from anthropic_emulator import fields
from anthropic_emulator.errors import invalid
from anthropic_emulator.request import blocks
from anthropic_emulator.tokens import JsonObject

ROLES: Final = ("assistant", "system", "user")
_IMAGE_TYPES: Final = ("image", "document", "search_result", "container_upload")
_SERVER_RESULT_SUFFIX: Final = "_tool_result"


def cache_control(block: JsonObject, path: str) -> None:
    """Check a block's `cache_control`, if it has one."""
    value = block.get("cache_control")
    if value is None:
        return
    here = fields.at(path, "cache_control")
    control = fields.obj(value, here)
    fields.only(control, ("type", "ttl"), here)
    fields.choice(fields.required(control, "type", here), ("ephemeral",), fields.at(here, "type"))
    if control.get("ttl") is not None:
        fields.choice(control["ttl"], ("5m", "1h"), fields.at(here, "ttl"))


def _text(block: JsonObject, path: str) -> None:
    fields.only(block, ("type", "text", "cache_control", "citations"), path)
    text = fields.string(fields.required(block, "text", path), fields.at(path, "text"))
    cache_control(block, path)
    if not text and block.get("cache_control") is not None:
        raise invalid(f"{path}.text: cache_control cannot be set for empty text blocks")
    if not text:
        raise invalid(f"{path.partition('.')[0]}: text content blocks must be non-empty")
    if not text.strip():
        raise invalid(f"{path.partition('.')[0]}: text content blocks must contain non-whitespace text")


def _thinking(block: JsonObject, path: str) -> None:
    fields.only(block, ("type", "thinking", "signature"), path)
    fields.string(fields.required(block, "thinking", path), fields.at(path, "thinking"))
    fields.string(fields.required(block, "signature", path), fields.at(path, "signature"))


def _redacted(block: JsonObject, path: str) -> None:
    fields.only(block, ("type", "data"), path)
    fields.string(fields.required(block, "data", path), fields.at(path, "data"))


def _tool_use(block: JsonObject, path: str) -> None:
    fields.only(block, ("type", "id", "name", "input", "cache_control", "caller"), path)
    ident = fields.string(fields.required(block, "id", path), fields.at(path, "id"))
    if not ident or not ident.replace("_", "a").replace("-", "a").isalnum() or not ident.isascii():
        raise invalid(f"{path}.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    fields.string(fields.required(block, "name", path), fields.at(path, "name"))
    fields.obj(fields.required(block, "input", path), fields.at(path, "input"))
    cache_control(block, path)


def _tool_result(block: JsonObject, path: str) -> None:
    fields.only(block, ("type", "tool_use_id", "content", "is_error", "cache_control"), path)
    fields.string(fields.required(block, "tool_use_id", path), fields.at(path, "tool_use_id"))
    if block.get("is_error") is not None:
        fields.boolean(block["is_error"], fields.at(path, "is_error"))
    cache_control(block, path)
    content = block.get("content")
    if content is None or isinstance(content, str):
        return
    here = fields.at(path, "content")
    for position, value in enumerate(fields.array(content, here)):
        inner = fields.obj(value, f"{here}.{position}")
        kind = fields.choice(
            fields.required(inner, "type", f"{here}.{position}"),
            ("text", "image", "document", "search_result", "tool_reference"),
            f"{here}.{position}.type",
        )
        if kind == "text":
            _text(inner, f"{here}.{position}")


def _passed(block: JsonObject, path: str) -> None:
    cache_control(block, path)


_CHECKS: Final[Mapping[str, Mapping[str, Callable[[JsonObject, str], None]]]] = {
    "user": {"text": _text, "tool_result": _tool_result, **dict.fromkeys(_IMAGE_TYPES, _passed)},
    "system": {"text": _text},
    "assistant": {
        "text": _text,
        "thinking": _thinking,
        "redacted_thinking": _redacted,
        "tool_use": _tool_use,
        "server_tool_use": _passed,
    },
}


def text_blocks(value: object, path: str) -> list[JsonObject]:
    """Blocks of `system` or of a system message: a string, or a list of text blocks."""
    if isinstance(value, str):
        value = [{"type": "text", "text": value}]
    found: list[JsonObject] = []
    for position, item in enumerate(fields.array(value, path)):
        here = f"{path}.{position}"
        block = fields.obj(item, here)
        fields.choice(fields.required(block, "type", here), ("text",), fields.at(here, "type"))
        _text(block, here)
        found.append(block)
    return found


def _block(item: object, role: str, path: str) -> JsonObject:
    block = fields.obj(item, path)
    kind = fields.string(fields.required(block, "type", path), fields.at(path, "type"))
    checks = _CHECKS[role]
    if kind in checks:
        checks[kind](block, path)
    elif role == "assistant" and kind.endswith(_SERVER_RESULT_SUFFIX):
        _passed(block, path)
    else:
        tags = ", ".join(f"'{name}'" for name in checks)
        raise invalid(
            f"{path}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {tags}"
        )
    return block


def message(value: object, position: int, *, last: bool) -> JsonObject:
    """Check one message and give it with its content as a list of blocks."""
    path = f"messages.{position}"
    source = fields.obj(value, path)
    fields.only(source, ("role", "content"), path)
    role = fields.choice(fields.required(source, "role", path), ROLES, fields.at(path, "role"))
    content = fields.required(source, "content", path)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    here = fields.at(path, "content")
    found = [_block(item, role, f"{here}.{n}") for n, item in enumerate(fields.array(content, here))]
    if not found and not (last and role == "assistant"):
        raise invalid(
            f"{path}: all messages must have non-empty content "
            "except for the optional final assistant message"
        )
    return {"role": role, "content": found}


def _ends_in_server_tool(turn: JsonObject) -> bool:
    content = blocks(turn)
    return bool(content) and content[-1]["type"] == "server_tool_use"


def roles(messages: Sequence[JsonObject]) -> None:
    """Check who speaks first, who last, and where system messages stand."""
    if not messages:
        raise invalid("messages: at least one message is required")
    if messages[0]["role"] == "assistant":
        raise invalid('messages: first message must use the "user" role')
    for position, turn in enumerate(messages):
        if turn["role"] != "system":
            continue
        before = messages[position - 1] if position else None
        if before is None or not (before["role"] == "user" or _ends_in_server_tool(before)):
            raise invalid(f"messages.{position}: role 'system' must follow a 'user' message")
        if position + 1 < len(messages) and messages[position + 1]["role"] != "assistant":
            raise invalid(
                f"messages.{position}: role 'system' must be last or precede an 'assistant' message"
            )
    if messages[-1]["role"] == "assistant" and not _ends_in_server_tool(messages[-1]):
        raise invalid(
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )


def tool_pairs(messages: Sequence[JsonObject]) -> None:
    """Check that every tool_use is answered at the head of the next user turn, and nothing else is."""
    seen: set[str] = set()
    for first, run in _runs(messages):
        if messages[first]["role"] == "user":
            _results_match(messages, first, run)
            continue
        calls = _ids(messages[first:run], "tool_use", "id")
        if len(set(calls)) != len(calls) or seen.intersection(calls):
            raise invalid(f"messages.{run - 1}: `tool_use` ids must be unique")
        seen.update(calls)
        missing = set(calls).difference(_leading_results(messages[run:]))
        if missing:
            raise invalid(
                f"messages.{run - 1}: `tool_use` ids were found without `tool_result` blocks immediately "
                f"after: {', '.join(call for call in calls if call in missing)}. Each `tool_use` block must "
                "have a corresponding `tool_result` block in the next message."
            )


def _runs(messages: Sequence[JsonObject]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive messages of one role; the API joins them into one turn."""
    found: list[tuple[int, int]] = []
    for position, turn in enumerate(messages):
        if found and turn["role"] == messages[position - 1]["role"]:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return found


def _ids(messages: Sequence[JsonObject], kind: str, key: str) -> list[str]:
    return [str(block[key]) for turn in messages for block in blocks(turn) if block["type"] == kind]


def _leading_results(messages: Sequence[JsonObject]) -> set[str]:
    """Ids answered before any other block of the next user turn."""
    found: set[str] = set()
    for turn in messages:
        for block in blocks(turn):
            if turn["role"] != "user" or block["type"] != "tool_result":
                return found
            found.add(str(block["tool_use_id"]))
    return found


def _results_match(messages: Sequence[JsonObject], first: int, run: int) -> None:
    """Check that the user turn `first`..`run` answers only calls of the assistant turn before it."""
    start = first
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    open_calls = set(_ids(messages[start:first], "tool_use", "id"))
    for position in range(first, run):
        for index, block in enumerate(blocks(messages[position])):
            if block["type"] == "tool_result" and block["tool_use_id"] not in open_calls:
                raise invalid(
                    f"messages.{position}.content.{index}: unexpected `tool_use_id` found in `tool_result` "
                    f"blocks: {block['tool_use_id']}. Each `tool_result` block must have a corresponding "
                    "`tool_use` block in the previous message."
                )
            if block["type"] == "tool_result":
                open_calls.discard(str(block["tool_use_id"]))
