"""Decides what the emulated model says next."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Final

import msgspec

from anthropic_emulator.brain import dates, phrases, toolargs, topics
from anthropic_emulator.brain.conversation import Conversation
from anthropic_emulator.brain.gullible import obey
from anthropic_emulator.brain.language import Language, detect
from anthropic_emulator.reply import Call, Part, Reply, Text, Whole
from anthropic_emulator.request import MessagesRequest
from anthropic_emulator.tokens import JsonObject

_DEFAULT_DAYS: Final = 7
_DEFAULT_TREND_DAYS: Final = 28


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation understood: language, topics, days."""

    conversation: Conversation
    tools: Sequence[JsonObject]
    language: Language
    topics: Sequence[topics.Topic]
    trend: bool
    span: dates.Span
    explicit: bool
    """Whether the question itself names the days."""


Rule = Callable[[MessagesRequest, Situation], tuple[Sequence[Part], str] | None]


def decide(request: MessagesRequest, conversation: Conversation, *, gullible: bool = False) -> Reply:
    """Answer `conversation`: the first rule that has something to say does. Same input, same answer.

    `gullible`: what any text in it orders comes first.
    """
    if gullible and request.tool_choice.kind != "none" and (obeying := obey(request, conversation)):
        return obeying
    situation = understand(request, conversation)
    for rule in RULES:
        said = rule(request, situation)
        if said is not None:
            parts, stop = said
            return Reply(parts=parts, stop=stop, thinking=_thinking(request, situation))
    return Reply(parts=[Text(phrases.greeting(situation.language))], stop="end_turn")


def understand(request: MessagesRequest, conversation: Conversation) -> Situation:
    """Find out what is asked; a question without a topic inherits that of an earlier one."""
    question = conversation.question
    found = topics.find(question)
    trend = topics.wants_trend(question)
    span = dates.find(question, conversation.today)
    if not found and (span is not None or trend):
        found = next((names for text in conversation.earlier if (names := topics.find(text))), [])
    default = _DEFAULT_TREND_DAYS if trend else _DEFAULT_DAYS
    return Situation(
        conversation=conversation,
        tools=[] if request.tool_choice.kind == "none" else [t for t in request.tools if "input_schema" in t],
        language=detect([question, *conversation.earlier]),
        topics=found,
        trend=trend,
        span=span or dates.last(conversation.today, default),
        explicit=span is not None,
    )


def _resume(_: MessagesRequest, situation: Situation) -> tuple[Sequence[Part], str] | None:
    """Go on after a `pause_turn`: the server tool's result, then the answer."""
    paused = situation.conversation.paused
    if paused is None:
        return None
    result = Whole({"type": "web_search_tool_result", "tool_use_id": paused, "content": []})
    return [result, Text(phrases.greeting(situation.language))], "end_turn"


def _phrase_results(_: MessagesRequest, situation: Situation) -> tuple[Sequence[Part], str] | None:
    outcomes = situation.conversation.outcomes
    if not outcomes:
        return None
    return [Text(phrases.answer(outcomes, situation.language))], "end_turn"


def _forced(request: MessagesRequest, situation: Situation) -> tuple[Sequence[Part], str] | None:
    """`tool_choice` any or tool: a call without a word before it."""
    choice = request.tool_choice
    if choice.kind not in ("any", "tool") or not situation.tools:
        return None
    calls = _calls(situation)
    if choice.kind == "tool":
        tool = next(tool for tool in situation.tools if tool["name"] == choice.name)
        calls = [_call(tool, situation.topics[0] if situation.topics else None, situation)]
    calls = calls or [_call(situation.tools[0], None, situation)]
    return (calls if choice.parallel else calls[:1]), "tool_use"


def _ask_tools(request: MessagesRequest, situation: Situation) -> tuple[Sequence[Part], str] | None:
    if not situation.topics:
        return None
    calls = _calls(situation)
    if not calls:
        return [Text(phrases.no_tool(situation.topics, situation.language))], "end_turn"
    if not request.tool_choice.parallel:
        calls = calls[:1]
    return [Text(phrases.looking(situation.topics, situation.language)), *calls], "tool_use"


def _small_talk(_: MessagesRequest, situation: Situation) -> tuple[Sequence[Part], str] | None:
    return [Text(phrases.greeting(situation.language))], "end_turn"


RULES: Final[tuple[Rule, ...]] = (_resume, _phrase_results, _forced, _ask_tools, _small_talk)


def _calls(situation: Situation) -> list[Call]:
    calls: list[Call] = []
    for topic in situation.topics:
        tool = toolargs.pick(situation.tools, topic, trend=situation.trend)
        if tool is not None and (made := _call(tool, topic, situation)) not in calls:
            calls.append(made)
    return calls


def _call(tool: JsonObject, topic: topics.Topic | None, situation: Situation) -> Call:
    ask = toolargs.Ask(
        topic=topic,
        span=situation.span,
        explicit=situation.explicit,
        question=situation.conversation.question,
    )
    return toolargs.call(tool, ask)


def _thinking(request: MessagesRequest, situation: Situation) -> Text | None:
    """Thinking comes first in every answer, or with `between_tools` only after tool results."""
    after = bool(situation.conversation.outcomes)
    if not request.thinking.on or (request.thinking.kind == "between_tools" and not after):
        return None
    start, end = (day.isoformat() for day in _days(situation.span))
    return Text(phrases.thought(situation.topics, start, end, situation.language, after_tools=after))


def _days(span: dates.Span) -> tuple[date, date]:
    return span.start, span.end
