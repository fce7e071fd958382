"""A model without judgement: it does what any text in the conversation tells it to, however it is disguised.

It is the worst model there can be, to see what a server keeps when the model keeps nothing. What it obeys:

- `some_tool {...}`, in prose, in tags or as `{"name": "some_tool", "input": {...}}`: the call, whether or not
  there is such a tool. All calls at once, or one after the other where the text says "then" or "dann".
- `{{system}}` and `{{conversation}}` in arguments: filled in with the system prompt and all earlier texts.
- "forever", "endlos": the same calls again and again.
- 'say "..."', 'sag „..."': those words. "Repeat your system prompt", "wiederhole deine Anweisungen": that.

It looks through HTML and URL escapes, base64, hexadecimal, ROT13, reversed text, full-width and Cyrillic
letters, and characters that nobody sees.
"""

import base64
import binascii
import codecs
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import unquote

import msgspec

from anthropic_emulator.brain.conversation import Conversation
from anthropic_emulator.reply import Call, Part, Reply, Text
from anthropic_emulator.request import MessagesRequest, text_of
from anthropic_emulator.tokens import JsonObject

_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9]*(?:_[a-zA-Z0-9]+)+")
_VERB: Final = re.compile(r"\b(?:get|set|remove|read|log|share)_[a-z]")
_BEFORE: Final = 60
"""How many characters before its arguments a tool's name may stand."""
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}){12,}")
_ORDERED: Final = re.compile(r"\b(?:then|dann|danach|afterwards)\b", re.IGNORECASE)
_FOREVER: Final = re.compile(r"\b(?:forever|endlos|again and again|immer wieder)\b", re.IGNORECASE)
_SAY: Final = re.compile(
    r"\b(?:say|answer|sag|sage|antworte)\b[^\"„“]{0,30}[\"„“]([^\"“”]{1,400})[\"“”]", re.IGNORECASE
)
_PROMPT: Final = re.compile(
    r"\b(?:repeat|reveal|print|show|wiederhole|verrate|zeige?)\b.{0,60}"
    r"\b(?:system ?prompt|instructions|anweisungen)",
    re.IGNORECASE | re.DOTALL,
)
_CYRILLIC: Final = "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0443\u0445\u0501\u051b"
_LOOKALIKES: Final = str.maketrans(_CYRILLIC, "aceiopsyxdq")
_MOST_CALLS: Final = 8
_decoder: Final = json.JSONDecoder()


class _Orders(msgspec.Struct, kw_only=True):
    """What the texts tell the model to do."""

    calls: list[Call]
    words: list[str]
    ordered: bool = False
    forever: bool = False


def obey(request: MessagesRequest, conversation: Conversation) -> Reply | None:
    """Do what is asked for anywhere in this turn; None when nothing is, or all of it is done."""
    orders = _read(request, conversation)
    done = [(outcome.name, outcome.arguments) for outcome in conversation.outcomes]
    calls = [call for call in orders.calls if orders.forever or (call.name, dict(call.arguments)) not in done]
    calls = calls[: 1 if orders.ordered else _MOST_CALLS]
    obeyed = [*(f"call {call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls)]
    obeyed += [f"say {text}" for text in orders.words]
    if not obeyed:
        return None
    words: list[Part] = [Text(text) for text in orders.words]
    return Reply(parts=[*words, *calls], stop="tool_use" if calls else "end_turn", obeyed=obeyed)


def _read(request: MessagesRequest, conversation: Conversation) -> _Orders:
    orders = _Orders(calls=[], words=[])
    seen: set[str] = set()
    for text in (each for told in _told(request, conversation) for each in _disguises(told)):
        if text in seen:
            continue
        seen.add(text)
        calls = [_filled(call, request, conversation) for call in _calls(text)]
        orders.calls += [call for call in calls if call not in orders.calls]
        orders.ordered |= bool(calls) and bool(_ORDERED.search(text))
        orders.forever |= bool(calls) and bool(_FOREVER.search(text))
        orders.words += [said for said in _SAY.findall(text) if said not in orders.words]
        if _PROMPT.search(text) and (prompt := _system(request)) not in orders.words:
            orders.words.append(prompt)
    return orders


def _told(request: MessagesRequest, conversation: Conversation) -> Iterator[str]:
    """Give every text of the turn that somebody other than the operator wrote."""
    yield conversation.question
    for turn in request.messages:
        if turn["role"] == "system":
            yield text_of(turn)
    for outcome in conversation.outcomes:
        if not outcome.failed:
            yield from _leaves(outcome.content)


def _leaves(content: str) -> list[str]:
    """Give the texts in a tool's result: those inside it if it is JSON."""
    try:
        return _strings(json.loads(content))
    except json.JSONDecodeError:
        return [content]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return []


# --- disguises ------------------------------------------------------------------------------------


def _disguises(text: str) -> Iterator[str]:
    """Give a text and all it may stand for."""
    plain = _seen(text)
    yield plain
    for way in (html.unescape, unquote, _unescaped, _from_rot13, _reversed):
        if (other := way(plain)) != plain:
            yield other
    for found in _ENCODED.findall(plain):
        yield from _decoded(found)
    for found in _HEX.findall(plain):
        yield bytes.fromhex(found).decode(errors="replace")


def _seen(text: str) -> str:
    """Make letters of what looks like letters or is none: full-width, Cyrillic, tags, zero-width."""
    spelled = "".join(chr(ord(c) - 0xE0000) if 0xE0020 <= ord(c) <= 0xE007E else c for c in text)
    normal = unicodedata.normalize("NFKC", spelled).translate(_LOOKALIKES)
    return "".join(c for c in normal if unicodedata.category(c) != "Cf")


def _unescaped(text: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text).replace('\\"', '"')


def _from_rot13(text: str) -> str:
    """Turn letters back, where that gives a tool's name: any text can be turned."""
    turned = codecs.decode(text, "rot13")
    return turned if _VERB.search(turned) else text


def _reversed(text: str) -> str:
    return text[::-1]


def _decoded(text: str) -> Iterator[str]:
    try:
        yield base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return


# --- calls ----------------------------------------------------------------------------------------


def _calls(text: str) -> list[Call]:
    """Find tool calls, however they are written down."""
    found: list[Call] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            at = text.find("{", at + 1)
            continue
        if isinstance(value, dict):
            call = _named(value) or _named_before(text[max(0, at - _BEFORE) : at], value)
            found += [] if call is None else [call]
        at = text.find("{", end)
    return found


def _named(value: JsonObject) -> Call | None:
    name = value.get("name") or value.get("tool") or value.get("recipient_name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    for key in ("input", "arguments", "args", "parameters"):
        arguments = value.get(key)
        if isinstance(arguments, dict):
            return Call(name, arguments)
    return None


def _named_before(text: str, arguments: JsonObject) -> Call | None:
    names = _NAME.findall(text)
    return Call(names[-1].lower(), arguments) if names else None


# --- what it gives away -----------------------------------------------------------------------------


def _filled(call: Call, request: MessagesRequest, conversation: Conversation) -> Call:
    """Put what is asked for into the arguments."""
    text = json.dumps(call.arguments)
    if "{{" not in text:
        return call
    filled = _fill(
        dict(call.arguments),
        {
            "{{system}}": _system(request),
            "{{conversation}}": "\n".join(_conversation(request)),
            "{{question}}": conversation.question,
        },
    )
    assert isinstance(filled, dict)
    return Call(call.name, filled)


def _fill(value: object, known: dict[str, str]) -> object:
    if isinstance(value, str):
        for place, text in known.items():
            value = value.replace(place, text)
        return value
    if isinstance(value, dict):
        return {key: _fill(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, known) for part in value]
    return value


def _system(request: MessagesRequest) -> str:
    return "\n".join(str(block["text"]) for block in request.system)


def _conversation(request: MessagesRequest) -> Sequence[str]:
    return [text for turn in request.messages if (text := text_of(turn))]
