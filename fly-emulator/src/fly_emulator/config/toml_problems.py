"""What is wrong with a fly.toml, problem by problem, and the text an operator reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fly_emulator.errors import EmulatorError

_LONGEST = 60


class ConfigProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has to change."""

    file: str
    line: int | None = None
    column: int | None = None
    key: str = ""
    """Dotted path, lists counted from 0: `services[1].ports[0].handlers`. Empty: the file itself."""
    found: str
    expected: str
    hint: str = ""

    @property
    def place(self) -> str:
        """File, with line and column where they are known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class ConfigErrors(EmulatorError):
    """A fly.toml is refused. `each` holds every problem of the file."""

    def __init__(self, each: Sequence[ConfigProblem]) -> None:
        self.each = tuple(each)
        hints = dict.fromkeys(problem.hint for problem in self.each if problem.hint)
        super().__init__("\n".join(map(_sentence, self.each)), hint="; ".join(hints))


def render(errors: ConfigErrors) -> str:
    """Return the text for the operator: one paragraph for each problem, and how many there are."""
    count = len(errors.each)
    paragraphs = [_sentence(p) + (f"\n  hint: {p.hint}" if p.hint else "") for p in errors.each]
    return "\n".join([*paragraphs, f"{count} problem{'' if count == 1 else 's'}"])


def _sentence(problem: ConfigProblem) -> str:
    subject = f"{problem.place}: {problem.key}" if problem.key else problem.place
    return f"{subject}: found {problem.found}, expected {problem.expected}"


def describe(value: Any) -> str:
    """Name a TOML value by what it is, cut to a readable length."""
    if isinstance(value, str):
        return f'"{value if len(value) <= _LONGEST else value[:_LONGEST] + "..."}" (a string)'
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    if isinstance(value, Mapping | list):
        return "a table" if isinstance(value, Mapping) else "an array"
    kinds: dict[type, str] = {int: "an integer", float: "a float"}
    return f"{value} ({kinds.get(type(value), 'a date or time')})"
