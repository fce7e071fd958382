"""Red flags in a turn: coaching stops, and a fixed text names help, without asking the model or a tool.

What was flagged is decided from the stored messages alone, before every step. So the check is the first
thing in a turn, before any gate on consent, budget or the model; and a turn that was taken over between a
flagged step and the fixed text comes to the same end.

The turns after a flag are treated with care: for `_FOLLOWING` turns the model is told of it in the message
on the user's situation, and a message that says it goes on or has become worse gets the fixed text again.
Turns are counted, not minutes: a conversation is taken up again hours later, and what is stored has no times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from agent_backend import safety
from agent_backend.safety import Flag
from agent_backend.telemetry import Log, metrics
from agent_backend.transcript import StoredMessage, notice_of
from agent_backend.turns.words import FixedWords

_log = Log("safety")

PREFIX = "safety."
_FOLLOWING = 3
_LONG = 4_000
"""Characters from which a text is checked in a thread, so that other turns go on meanwhile."""


def earlier_flag(stored: list[StoredMessage], turn_id: str) -> str | None:
    """Return the category of a flag on the user's own words in the last `_FOLLOWING` turns before this."""
    turns: list[str] = []
    for message in reversed(stored):
        if message.turn_id == turn_id:
            continue
        if message.turn_id not in turns:
            turns.append(message.turn_id)
            if len(turns) > _FOLLOWING:
                return None
        category = _flagged(message)
        if category is not None and not category.startswith("answer_"):
            return category
    return None


def told(situation: str, stored: list[StoredMessage], turn_id: str) -> str:
    """Return what the model is told of now, with a word of caution after an earlier flag."""
    category = earlier_flag(stored, turn_id)
    if category is None:
        return situation
    from agent_backend.safety.flags import caution  # noqa: PLC0415 - not needed to boot

    return f"{situation} {caution(category)}"


class Watch:
    """Looks at one turn's messages as they are stored; each is checked once."""

    def __init__(self, turn_id: str) -> None:
        self._turn_id = turn_id
        self._checked: set[str] = set()

    async def stop(self, stored: list[StoredMessage], locale: str) -> FixedWords | None:
        """Return the fixed text with which the turn must end now, if one of its messages asks for it."""
        fresh = [m for m in stored if m.turn_id == self._turn_id and m.id not in self._checked]
        for message in fresh:
            self._checked.add(message.id)
            flag = await self._check(message, stored, locale)
            if flag is not None:
                note(flag)
                return FixedWords(PREFIX + flag.category, flag.text)
        return None

    async def _check(self, message: StoredMessage, stored: list[StoredMessage], locale: str) -> Flag | None:
        if message.role == "assistant" and notice_of(message.id) is None:
            return await flag_in_answer(msgspec.json.decode(message.content), locale)
        if message.role != "user":
            return None
        text = _text(msgspec.json.decode(message.content))
        flag = await flag_in(text, locale)
        if flag is None and (category := earlier_flag(stored, self._turn_id)) is not None:
            flag = safety.check_follow_up(text, category, locale)
        return flag


async def flag_in(text: str, locale: str) -> Flag | None:
    """Return the red flag in a user's message."""
    return await _in_time(safety.check, text, locale)


async def flag_in_answer(content: list[dict[str, Any]], locale: str) -> Flag | None:
    """Return what must not stand alone in an answer; `content` are its blocks."""
    return await _in_time(safety.check_answer, _text(content), locale)


def without_server_tools(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an answer's blocks without the provider's own tool calls: none may stay open before a text."""
    return [block for block in content if block["type"] in ("text", "thinking", "redacted_thinking")]


def note(flag: Flag) -> None:
    """Count a flag and write its category to the log, and nothing else about it."""
    metrics.safety_flags[flag.category] += 1
    _log.info("safety_flag", category=flag.category)


async def _in_time(check: Callable[[str, str], Flag | None], text: str, locale: str) -> Flag | None:
    if safety.is_warm() and len(text) < _LONG:
        return check(text, locale)
    return await asyncio.to_thread(check, text, locale)


def _flagged(message: StoredMessage) -> str | None:
    notice = (message.role == "assistant" and notice_of(message.id)) or ""
    return notice.removeprefix(PREFIX) if notice.startswith(PREFIX) else None


def _text(blocks: list[dict[str, Any]]) -> str:
    return "\n\n".join(block["text"] for block in blocks if block["type"] == "text")
