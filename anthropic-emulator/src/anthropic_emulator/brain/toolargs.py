"""Picks a tool for a topic and fills in its arguments, from nothing but the offered definitions."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Final

import msgspec

from anthropic_emulator.brain.dates import Span
from anthropic_emulator.brain.topics import Topic
from anthropic_emulator.reply import Call
from anthropic_emulator.tokens import JsonObject

_METRIC_NAMES: Final = ("metric", "metrics", "measure", "type", "kind")
_START: Final = re.compile(r"start|from|since|begin|von|after")
_END: Final = re.compile(r"end|until|\bto\b|\btill\b|bis|before")
_COUNTS: Final = {"day": 1, "night": 1, "week": 7, "month": 30, "year": 365}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What arguments are made from."""

    topic: Topic | None
    span: Span
    explicit: bool
    """Whether the question names the days; if not, a tool's own default is better."""
    question: str


def pick(tools: Sequence[JsonObject], topic: Topic, *, trend: bool) -> JsonObject | None:
    """Give the offered tool that fits `topic` best, or None when none does."""
    if trend:
        for tool in tools:
            if "trend" in str(tool["name"]).lower() and _accepts(tool, topic):
                return tool
    fitting = [tool for tool in tools if "trend" not in str(tool["name"]).lower()]
    for word in topic.tool_words:
        for tool in fitting:
            if word in str(tool["name"]).lower() and _accepts(tool, topic):
                return tool
    return next((tool for tool in fitting if _metric_of(tool, topic) is not None), None)


def call(tool: JsonObject, ask: Ask) -> Call:
    """Call `tool` with every required argument, and with the optional dates and metric it knows."""
    schema = _schema(tool)
    needed = schema.get("required")
    names = needed if isinstance(needed, list) else []
    arguments: dict[str, object] = {}
    for name, spec in _properties(tool):
        if name in names or _worth_giving(name, spec, schema):
            arguments[name] = _value(name, spec, ask)
    return Call(str(tool["name"]), arguments)


def _schema(tool: JsonObject) -> JsonObject:
    schema = tool.get("input_schema")
    return schema if isinstance(schema, dict) else {}


def _properties(tool: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    properties = _schema(tool).get("properties")
    if isinstance(properties, dict):
        for name, spec in properties.items():
            if isinstance(spec, dict):
                yield name, _resolve(spec, _schema(tool))


def _resolve(spec: JsonObject, schema: JsonObject) -> JsonObject:
    """Follow a local `$ref`, and take the first alternative of a union that is not null."""
    reference = spec.get("$ref")
    definitions = schema.get("$defs")
    if isinstance(reference, str) and isinstance(definitions, dict):
        target = definitions.get(reference.rpartition("/")[2])
        return (
            {**target, **{k: v for k, v in spec.items() if k != "$ref"}} if isinstance(target, dict) else spec
        )
    options = spec.get("anyOf") or spec.get("oneOf")
    if isinstance(options, list):
        for option in options:
            if isinstance(option, dict) and option.get("type") != "null":
                return {**spec, **_resolve(option, schema)}
    return spec


def _enum(spec: JsonObject) -> list[str]:
    values = spec.get("enum")
    return [str(value) for value in values if value is not None] if isinstance(values, list) else []


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _metric_of(tool: JsonObject, topic: Topic) -> str | None:
    """Give the enum value of `tool` that means the topic."""
    for _, spec in _properties(tool):
        items = spec.get("items")
        for value in _enum(spec) or (_enum(items) if isinstance(items, dict) else []):
            if _plain(value) == _plain(topic.name):
                return value
    return None


def _accepts(tool: JsonObject, topic: Topic) -> bool:
    """Whether the tool can be asked for the topic: by an enum, by free text, or by its own name."""
    for name, spec in _properties(tool):
        if name.lower() in _METRIC_NAMES:
            return _metric_of(tool, topic) is not None or not (_enum(spec) or "items" in spec)
    return topic.tool_words[0] in str(tool["name"]).lower()


def _is_date(name: str, spec: JsonObject) -> bool:
    return str(spec.get("format", "")).startswith("date") or bool(
        spec.get("type") in ("string", None) and re.search(r"date|\bday$|start|end|since|until", name.lower())
    )


def _worth_giving(name: str, spec: JsonObject, schema: Mapping[str, object]) -> bool:
    """Whether an optional argument says what was asked: a date, a metric, or a number of days or weeks."""
    if _is_date(name, spec) or name.lower() in _METRIC_NAMES:
        return True
    properties = schema.get("properties")
    has_dates = isinstance(properties, dict) and any(
        isinstance(other, dict) and _is_date(key, other) for key, other in properties.items()
    )
    return not has_dates and any(unit in name.lower() for unit in _COUNTS)


def _value(name: str, spec: JsonObject, ask: Ask) -> object:
    if _enum(spec):
        return _enum_value(spec, ask)
    if _is_date(name, spec):
        return _date_value(name, spec, ask.span)
    match spec.get("type"):
        case "array":
            items = spec.get("items")
            made: object = [_value(name, items if isinstance(items, dict) else {}, ask)]
        case "integer" | "number":
            made = _count_value(name, spec, ask)
        case "boolean":
            made = bool(spec.get("default", False))
        case "object":
            made = {}
        case _:
            topic = ask.topic if name.lower() in _METRIC_NAMES else None
            made = topic.name if topic else spec.get("default") or ask.question
    return made


def _enum_value(spec: JsonObject, ask: Ask) -> str:
    values = _enum(spec)
    if ask.topic is not None:
        for value in values:
            if _plain(value) == _plain(ask.topic.name):
                return value
    lowered = ask.question.lower()
    named = [value for value in values if value.lower() in lowered]
    default = spec.get("default")
    return (named or ([str(default)] if default in values else []) or values)[0]


def _date_value(name: str, spec: JsonObject, span: Span) -> str:
    lowered = name.lower()
    last = bool(_END.search(lowered)) and not _START.search(lowered)
    day: date = span.end if last or not _START.search(lowered) else span.start
    if spec.get("format") == "date-time":
        return f"{day.isoformat()}T{'23:59:59' if last else '00:00:00'}Z"
    return day.isoformat()


def _count_value(name: str, spec: JsonObject, ask: Ask) -> int:
    unit = next((days for word, days in _COUNTS.items() if word in name.lower()), None)
    default = spec.get("default")
    if isinstance(default, int | float) and (unit is None or not ask.explicit):
        return int(default)
    low, high = spec.get("minimum"), spec.get("maximum")
    wanted = 10 if unit is None else math.ceil(ask.span.days / unit)
    if isinstance(low, int | float):
        wanted = max(wanted, int(low))
    if isinstance(high, int | float):
        wanted = min(wanted, int(high))
    return wanted
