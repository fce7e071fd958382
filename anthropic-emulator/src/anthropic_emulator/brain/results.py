"""Reads numbers out of tool results of unknown shape.

Understands JSON objects with scalars and one table, where a table is a list of objects, a list of
`[label, value]` pairs, an object of label -> value, or `columns` with `rows`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeGuard

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
    """By dotted path, such as `summary.total`."""
    words: Mapping[str, str]
    """Texts and truth values, by dotted path."""
    lists: Mapping[str, Sequence[str]]
    """Lists of texts, such as `sources`."""
    rows: Sequence[Row]
    text: str | None = None


def read(content: str) -> Findings:
    """Look through a tool result."""
    try:
        value: object = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        value = content
    if not isinstance(value, dict | list):
        return Findings(numbers={}, words={}, lists={}, rows=(), text=str(value).strip())
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    lists: dict[str, Sequence[str]] = {}
    for path, item in _leaves(value, ""):
        if isinstance(item, list):
            lists[path] = item
        elif isinstance(item, str):
            words[path] = item
        else:
            numbers[path] = item
    return Findings(numbers=numbers, words=words, lists=lists, rows=_best(list(_tables(value))))


def _best(tables: Sequence[list[Row]]) -> Sequence[Row]:
    """Give the first table whose rows are about days, else the first."""
    dated = (rows for rows in tables if rows and _DATED.match(rows[0].label))
    return next(dated, next(iter(tables), ()))


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _leaves(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, float | str | list[str]]]:
    """Scalars, and lists of texts, of an object and of the objects inside it, but not of its tables."""
    if not isinstance(value, dict) or depth > MAX_DEPTH or _keyed_rows(value) is not None:
        return
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(item, bool):
            yield here, "true" if item else "false"
        elif isinstance(item, str | int | float) or _is_texts(item):
            yield here, item
        else:
            yield from _leaves(item, here, depth + 1)


def _tables(value: object, depth: int = 0) -> Iterator[list[Row]]:
    """All tables in `value`, in order."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, list):
        rows = _listed_rows(value)
        if rows:
            yield rows
    elif isinstance(value, dict):
        keyed = _columns(value) or _keyed_rows(value)
        if keyed is not None:
            yield keyed
            return
        for item in value.values():
            yield from _tables(item, depth + 1)


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
