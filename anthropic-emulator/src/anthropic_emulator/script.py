"""Plays what a directive fixes, over or instead of what the brain would say."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle, islice
from typing import Final

import msgspec

from anthropic_emulator import brain
from anthropic_emulator.directives import Script
from anthropic_emulator.reply import Call, Part, Reply, ServerCall, Text
from anthropic_emulator.request import MessagesRequest
from anthropic_emulator.stream import STAMP

# Words of several lengths and scripts, so that byte and character counts differ.
_FILLER: Final = ("Größe ", "steps ", "per ", "day ", "Schlaf ", "night ", "für ", "Übung ", "and ", "heart ")


@lru_cache(maxsize=64)
def _filler(count: int) -> tuple[str, ...]:
    return tuple(islice(cycle(_FILLER), count))


def _deltas(script: Script) -> tuple[str, ...] | None:
    """Text deltas a script asks for; None when it leaves the text to the brain."""
    if script.stamp and script.tokens is not None:
        return (STAMP.decode(),) * script.tokens
    if script.text is None:
        return None if script.tokens is None else _filler(script.tokens)
    if script.tokens is None:
        return (script.text,) if not script.text else None
    words = [word + " " for word in script.text.split()] or list(_FILLER)
    return tuple(islice(cycle(words), script.tokens))


def answer(
    request: MessagesRequest, conversation: brain.Conversation, script: Script, *, gullible: bool = False
) -> Reply:
    """Give the reply to a request: the script's parts, and the brain's where the script is silent."""
    reply = brain.decide(request, conversation, gullible=gullible)
    parts, stop = _parts(reply, conversation.step, script)
    if script.stop is not None:
        stop = script.stop
    if stop == "pause_turn":
        parts = [*parts, ServerCall("web_search", {"query": conversation.question})]
    thinking = reply.thinking
    if script.thinking is not None and request.thinking.on:
        pieces = _filler(script.thinking)
        thinking = Text("".join(pieces), pieces) if pieces else None
    obeyed = reply.obeyed if parts is reply.parts else ()
    return Reply(parts=parts, stop=stop, thinking=thinking, obeyed=obeyed)


def _parts(reply: Reply, step: int, script: Script) -> tuple[Sequence[Part], str]:
    if script.tool is not None and step <= script.rounds:
        return [Call(script.tool, script.args or {})], "tool_use"
    deltas = _deltas(script)
    if deltas is not None:
        return [Text("".join(deltas), deltas)], "end_turn"
    if script.text is not None:
        return [Text(script.text)], "end_turn"
    return reply.parts, reply.stop


def merge(header: Script | None, directive: Script | None) -> Script:
    """Join the script of the header with the one in the text; the text's wins field by field."""
    base = msgspec.structs.asdict(header or Script())
    if directive is not None:
        base.update({k: v for k, v in msgspec.structs.asdict(directive).items() if v != _DEFAULTS[k]})
    return Script(**base)


_DEFAULTS: Final = msgspec.structs.asdict(Script())
