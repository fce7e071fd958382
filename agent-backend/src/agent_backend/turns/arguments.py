"""Whether what the model wrote fits the schema that a client declared for its tool; pure.

A call goes to the phone only if it does: nothing that was not declared gets there, whoever talked the model
into it. Understood of JSON Schema: type, enum, const, properties, required, additionalProperties, items,
minimum, maximum, exclusive ones, minLength, maxLength, minItems, maxItems, anyOf, oneOf. Other keywords
forbid nothing; patterns are the client's to check, because matching them here could take for ever. Unlike
JSON Schema, what `properties` does not name is refused unless `additionalProperties` allows it, and a tool
without `properties` takes no arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

_DEPTH = 32
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}


def mismatch(schema: Schema, value: Any, at: str = "", depth: int = 0) -> str | None:
    """Return what is wrong with the value, naming where (`days[0].steps`), or None."""
    if depth > _DEPTH:
        return f"{_place(at)} is nested too deeply"
    wrong = _wrong_type(schema, value) or _wrong_choice(schema, value) or _wrong_size(schema, value)
    if wrong is not None:
        return f"{_place(at)} {wrong}"
    for options in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(options, list) and all(
            mismatch(_schema(each), value, at, depth + 1) for each in options
        ):
            return f"{_place(at)} fits none of what is allowed"
    if isinstance(value, dict):
        return _inside_object(schema, value, at, depth)
    if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        found = (mismatch(items, each, f"{at}[{index}]", depth + 1) for index, each in enumerate(value))
        return next((each for each in found if each is not None), None)
    return None


def _inside_object(schema: Schema, value: dict[str, Any], at: str, depth: int) -> str | None:
    properties = _schema(schema.get("properties"))
    for name in _names(schema.get("required")):
        if name not in value:
            return f"{_place(_below(at, name))} is missing"
    named = depth == 0 or "properties" in schema
    elsewhere = any(keyword in schema for keyword in ("anyOf", "oneOf", "allOf", "$ref"))
    others = schema.get("additionalProperties", elsewhere or not named)
    for name, each in value.items():
        inner = properties.get(name, others)
        if inner is False:
            return f"{_place(_below(at, name))} is not declared"
        if wrong := mismatch(_schema(inner), each, _below(at, name), depth + 1):
            return wrong
    return None


def _wrong_type(schema: Schema, value: Any) -> str | None:
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else _names(wanted)
    known = [kind for kind in kinds if kind in _TYPES]
    if known and not any(_TYPES[kind](value) for kind in known):
        return f"must be of type {' or '.join(known)}"
    return None


def _wrong_choice(schema: Schema, value: Any) -> str | None:
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(allowed, list) and not any(type(each) is type(value) and each == value for each in allowed):
        return "is none of the values allowed"
    return None


def _wrong_size(schema: Schema, value: Any) -> str | None:
    if isinstance(value, str | list):
        least, most = ("minLength", "maxLength") if isinstance(value, str) else ("minItems", "maxItems")
        low, high, size = _number(schema.get(least)), _number(schema.get(most)), len(value)
        if (low is not None and size < low) or (high is not None and size > high):
            return "is too short or too long"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = _number(schema.get("minimum")), _number(schema.get("maximum"))
        above, below = _number(schema.get("exclusiveMinimum")), _number(schema.get("exclusiveMaximum"))
        if (low is not None and value < low) or (high is not None and value > high):
            return "is out of range"
        if (above is not None and value <= above) or (below is not None and value >= below):
            return "is out of range"
    return None


def _schema(value: Any) -> Schema:
    """Return a subschema; what is none (`true`, nonsense of a client) allows everything."""
    return value if isinstance(value, dict) else {}


def _names(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _place(at: str) -> str:
    shown = at.encode("utf-8", "replace").decode()[:200]
    return f"Argument `{shown}`" if shown else "The argument object"
