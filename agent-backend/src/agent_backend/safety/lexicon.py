"""The shapes of the data files, read and checked; every file says who has reviewed it (`reviews`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

DATA = Path(__file__).with_name("data")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a fact comes from, and when it was read there."""

    what: str
    url: str
    read_on: str


class Reviewed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every data file begins with; `reviewed_by` is empty until a named person signs."""

    title: str
    version: str
    reviewed_by: str
    reviewed_on: str
    sources: list[Source]


class Category(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked for. `rules` do not count when negated or in a sentence of the contexts `unless`.

    `certain` rules count always; negations in them are meant. With `but_counts` a negated match counts when
    the sentence goes on with "but".
    """

    name: str
    rules: list[str]
    certain: list[str] = []
    unless: list[str] = []
    but_counts: bool = False
    unless_answer: list[str] = []
    """Of answers: what anywhere in the text makes the category's matches harmless."""


class Negation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words that negate what follows, and phrases in which they do not.

    `negators` names a set; `afterwards` (in German) also negate what stands before them; `ends` end a scope.
    """

    negators: str
    afterwards: str
    not_negators: list[str]
    ends: str


class Typing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words that are never taken for a mistyped other one."""

    ordinary: str


class FlagFile(Reviewed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`red_flags.json` and `answers.json`; categories in the order of urgency."""

    sets: dict[str, str]
    idioms: list[str]
    negation: Negation
    contexts: dict[str, list[str]]
    categories: list[Category]
    follow_up: list[str] = []
    typing: Typing | None = None
    """None: typing errors are not looked for."""


class TextFile(Reviewed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`texts.json`: what is said, by language and category, with `{lines}` of `helplines.json` in it."""

    texts: dict[str, dict[str, str]]
    crisis_too: dict[str, str]
    """Added to the text of another category when suicidality was found as well, by language."""
    caution: str
    """What the model is told in the turns after a flag; `{category}` in it."""


class HelplineFile(Reviewed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`helplines.json`: by language and region (ISO 3166; `""`: anywhere) the lines named in the texts."""

    lines: dict[str, dict[str, dict[str, str]]]


def load(name: str, kind: type[T]) -> T:
    """Read a data file. Raises msgspec.ValidationError when it has another shape."""
    return msgspec.json.decode((DATA / name).read_bytes(), type=kind)


def encoded(value: Any) -> str:
    """Return a value as JSON, for tests and reports."""
    return msgspec.json.encode(value).decode()
