"""Reads numbers out of tool results of unknown shape.

Understands JSON objects with scalars and one table, where a table is a list of objects, a list of
`[label, value]` pairs, an object of label -> value, or `columns` with `rows`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

_LABELS: Final = ("date", "day", "night", "week", "month", "start", "label", "activity", "type", "name")
_DATED: Final = re.compile(r"\d{4}-(\d{2}-\d{2}|W\d{2}|\d{2})")
MAX_DEPTH: Final = 6


class Row(msgspec.Struct, frozen=True):
    """One line of a table: what it is about (a day, say), its numbers, its other words."""

    label: str
    numbers: Mapping[str, float]
    words: Mapping[str, str]


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The scalars and the rows of a result; `text` is set when it was no JSON object or list."""

    numbers: Mapping[str, float]
    words: Mapping[str, str]
    rows: Sequence[Row]
    text: str | None = None


def read(content: str) -> Findings:
    """Look through a tool result."""
    try:
        value: object = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        value = content
    if not isinstance(value, dict | list):
        return Findings(numbers={}, words={}, rows=(), text=str(value).strip())
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    rows = list(_table(value) or ())
    for key, item in _scalars(value, 0):
        if isinstance(item, str):
            words.setdefault(key, item)
        else:
            numbers.setdefault(key, item)
    return Findings(numbers=numbers, words=words, rows=rows)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scalars(value: object, depth: int) -> Iterator[tuple[str, float | str]]:
    """Scalars of an object and of objects inside it, but none of its tables."""
    if not isinstance(value, dict) or depth > MAX_DEPTH or _keyed_rows(value) is not None:
        return
    for key, item in value.items():
        if isinstance(item, str) or _is_number(item):
            yield key, item
        else:
            yield from _scalars(item, depth + 1)


def _table(value: object, depth: int = 0) -> list[Row] | None:
    """Rows of the first table in `value`."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, list):
        return _listed_rows(value)
    if not isinstance(value, dict):
        return None
    keyed = _columns(value) or _keyed_rows(value)
    if keyed is not None:
        return keyed
    for item in value.values():
        found = _table(item, depth + 1)
        if found:
            return found
    return None


def _columns(value: Mapping[str, object]) -> list[Row] | None:
    columns, lines = value.get("columns"), value.get("rows")
    if not isinstance(columns, list) or not isinstance(lines, list):
        return None
    names = [str(column) for column in columns]
    return [_row(dict(zip(names, line, strict=False))) for line in lines if isinstance(line, list)]


def _keyed_rows(value: Mapping[str, object]) -> list[Row] | None:
    """Rows of an object whose keys are all dates."""
    if not value or not all(_DATED.match(key) for key in value):
        return None
    rows: list[Row] = []
    for key, item in value.items():
        fields = item if isinstance(item, dict) else {"value": item}
        rows.append(_row({"date": key, **fields}))
    return rows


def _listed_rows(items: Sequence[object]) -> list[Row] | None:
    rows: list[Row] = []
    for item in items:
        if isinstance(item, dict):
            rows.append(_row(item))
        elif isinstance(item, list) and item and isinstance(item[0], str):
            rows.append(_row({"label": item[0], **{f"value{n or ''}": v for n, v in enumerate(item[1:])}}))
    return rows or None


def _row(source: Mapping[str, object]) -> Row:
    label = next((str(source[key]) for key in _LABELS if isinstance(source.get(key), str)), "")
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    for key, item in source.items():
        if isinstance(item, str) and item != label:
            words[key] = item
        elif isinstance(item, int | float) and not isinstance(item, bool):
            numbers[key] = item
        elif isinstance(item, dict):
            numbers.update({str(k): v for k, v in item.items() if isinstance(v, int | float)})
    return Row(label, numbers, words)
