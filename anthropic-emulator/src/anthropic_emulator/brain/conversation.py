"""What the emulated model notices of a conversation."""

import re
from collections.abc import Sequence
from datetime import date
from typing import Final

import msgspec

from anthropic_emulator import directives
from anthropic_emulator.request import MessagesRequest, blocks, text_of
from anthropic_emulator.tokens import JsonObject

_CONTEXT: Final = re.compile(r"<([a-z][\w-]*)[^>]*>.*?</\1>", re.DOTALL | re.IGNORECASE)
_TODAY: Final = re.compile(
    r"(?:today|heute|current|aktuell\w*|date|datum|now|jetzt)[^\n]{0,40}?(\d{4})-(\d{2})-(\d{2})",
    re.IGNORECASE,
)


class ToolOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """A finished tool call of this turn: what was asked, what came back as text."""

    name: str
    arguments: JsonObject
    content: str
    failed: bool


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """The turn to answer."""

    question: str
    """The last user text, without directives and without `<tag>...</tag>` context."""
    earlier: Sequence[str]
    """Questions before it, latest first."""
    today: date
    outcomes: Sequence[ToolOutcome]
    """Tool calls made since the question."""
    step: int
    """Which model call of this turn is being answered, from 1."""
    paused: str | None
    """Id of the server tool call to go on from after a `pause_turn`."""
    directive: directives.Script | None


def read(request: MessagesRequest, clock_today: date) -> Conversation:
    """Look at a request. `clock_today` is used where the conversation names no date for today."""
    raw = [(n, text_of(turn)) for n, turn in enumerate(request.messages) if turn["role"] == "user"]
    asked = [(n, text, question) for n, text in raw if (question := _question(text))]
    at, text, question = asked[-1] if asked else (-1, "", "")
    if not asked and raw:
        at, text = raw[-1]
    since = request.messages[at + 1 :]
    return Conversation(
        question=question,
        earlier=[earlier for _, _, earlier in reversed(asked[:-1])],
        today=_today(request) or clock_today,
        outcomes=_outcomes(since),
        step=1 + sum(turn["role"] == "assistant" for turn in since),
        paused=_paused(request.messages),
        directive=directives.in_text(text),
    )


def _question(text: str) -> str:
    """Give what a user asks; of a bare directive something stays, so that it counts as a question."""
    plain = _CONTEXT.sub(" ", directives.strip(text)).strip()
    return plain or ("…" if directives.OPEN in text else "")


def _today(request: MessagesRequest) -> date | None:
    texts = [text_of(turn) for turn in reversed(request.messages) if turn["role"] != "assistant"]
    texts += [str(block["text"]) for block in request.system]
    for text in texts:
        for found in _TODAY.finditer(text):
            try:
                return date(int(found[1]), int(found[2]), int(found[3]))
            except ValueError:
                continue
    return None


def _outcomes(since: Sequence[JsonObject]) -> list[ToolOutcome]:
    calls: dict[object, JsonObject] = {}
    found: list[ToolOutcome] = []
    for turn in since:
        for block in blocks(turn):
            if block["type"] == "tool_use":
                calls[block["id"]] = block
            elif block["type"] == "tool_result" and block["tool_use_id"] in calls:
                found.append(_outcome(calls[block["tool_use_id"]], block))
    return found


def _outcome(call: JsonObject, result: JsonObject) -> ToolOutcome:
    content = result.get("content") or ""
    if not isinstance(content, str):
        assert isinstance(content, list)
        content = "\n".join(str(block["text"]) for block in content if block["type"] == "text")
    arguments = call["input"]
    assert isinstance(arguments, dict)
    return ToolOutcome(
        name=str(call["name"]),
        arguments=arguments,
        content=content,
        failed=bool(result.get("is_error")),
    )


def _paused(messages: Sequence[JsonObject]) -> str | None:
    content = blocks(messages[-1])
    last = content[-1] if content else None
    if last is not None and last["type"] == "server_tool_use":
        return str(last.get("id"))
    return None
