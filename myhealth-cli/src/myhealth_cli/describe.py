"""Tool calls in a line each: the name with its arguments, and what came back, short enough to read."""

from __future__ import annotations

from typing import Any, Final

import msgspec

_MAX_VALUE: Final = 40


def arguments(text: str) -> str:
    """Return a call's arguments (JSON, perhaps still being written) as `name=value, ...`."""
    try:
        values = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return text
    if not isinstance(values, dict):
        return text
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def whole(values: dict[str, Any]) -> str:
    """Return every argument uncut as `name=value, ...`: what somebody says yes to must be all there."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for name, value in values.items()
    )


def result(text: str, asked: str = "{}", width: int = 160) -> str:
    """Return a tool's result (JSON, else plain text) as `name value · ...`, cut to `width` characters.

    What only repeats the arguments `asked` (JSON) is left out.
    """
    try:
        values, repeated = msgspec.json.decode(text), msgspec.json.decode(asked or "{}")
    except msgspec.DecodeError:
        return _cut(" ".join(text.split()), width)
    if not isinstance(values, dict):
        return _short(values)
    if isinstance(repeated, dict):
        values = {name: value for name, value in values.items() if repeated.get(name) != value}
    return _cut(" · ".join(_facts(values)), width)


def _facts(values: dict[str, Any]) -> list[str]:
    """Summaries, then figures, then lists: of most lists the length says enough."""
    summaries = {name: value for name, value in values.items() if isinstance(value, dict)}
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    figures = {name: value for name, value in values.items() if name not in summaries.keys() | lists.keys()}
    facts = [
        ", ".join(f"{_words(key)} {_short(each)}" for key, each in of.items()) for of in summaries.values()
    ]
    facts += [f"{_words(name)} {_short(value)}" for name, value in figures.items() if value is not None]
    for name, value in lists.items():
        flat = all(isinstance(each, str) for each in value) and 0 < len(value) <= 2
        facts.append(f"{_words(name)} {', '.join(value)}" if flat else f"{len(value)} {_words(name)}")
    return facts


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(each)}" for key, each in value.items()) + "}"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return _cut(text, _MAX_VALUE)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
