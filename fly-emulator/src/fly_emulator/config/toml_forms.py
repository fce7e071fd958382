"""The forms a single value of fly.toml takes: durations, sizes, signals and what flyctl casts.

A form says what it expects and turns a value into the one the rest works with. Sources: superfly/flyctl
ad0172f (2026-08-21) `internal/appconfig/patches.go`, `helpers/units.go`; superfly/fly-go 22d6e51
`duration.go`; docker/go-units, on which flyctl's sizes rest.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import signal
from typing import Any, Literal, Protocol, TypeAlias

from fly_emulator.machine_config import duration_seconds

Unit: TypeAlias = Literal["s", "ms", "ns"]

_NANOSECONDS: dict[Unit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "ns": 1}
_UNIT_NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "ns": "nanoseconds"}
_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([kmgtp]?)i?b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_INTEGER = re.compile(r"[+-]?\d{1,15}")


class Refused(Exception):
    """The value has not this form.

    `hint` says more where there is more to say; `under` names the key inside a table whose `value` is wrong,
    `expected` what that value had to be.
    """

    def __init__(
        self, hint: str = "", *, under: str = "", value: Any = None, expected: str = "a string"
    ) -> None:
        super().__init__(hint)
        self.hint = hint
        self.under = under
        self.value = value
        self.expected = expected


class Form(Protocol):
    """What a value has to look like."""

    expected: str

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the value to work with and a warning ("" for none). Raises Refused."""
        ...


class DurationForm:
    """A Go duration such as "1m30s"; a bare integer counts `unit`s, as flyctl takes it."""

    def __init__(self, unit: Unit) -> None:
        self.unit: Unit = unit
        self.expected = 'a duration such as "10s" or "1m30s"'

    def read(self, value: Any) -> tuple[Any, str]:
        """Return Go's way of writing the duration; None for the empty string, which flyctl takes as unset."""
        if value == "":
            return None, ""
        if isinstance(value, str):
            return format_duration(_nanoseconds(value)), ""
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise Refused
        text = format_duration(int(value) * _NANOSECONDS[self.unit])
        if self.unit != "ns" or value == 0:
            return text, ""
        unit = _UNIT_NAMES[self.unit]
        return text, f"flyctl takes a bare number here as {unit} ({text}), not as milliseconds: add a unit"


class SizeForm:
    """A size such as "512mb"; a bare number counts in `unit`."""

    def __init__(self, unit: Literal["MiB", "GB"]) -> None:
        self.unit = unit
        self.expected = (
            'a size such as "512mb", "1gb" or 512 (MiB)'
            if unit == "MiB"
            else 'a size such as "10gb" or 10 (GB), at least 1gb'
        )

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the size in `unit`, rounded down, at least 1."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Refused
        base, quotient = (1024, 1024**2) if self.unit == "MiB" else (1000, 1000**3)
        text = str(value)
        if _INTEGER.fullmatch(text):
            size = int(text)
        elif parts := _SIZE.fullmatch(text):
            size = int(float(parts[1]) * base ** _POWERS[parts[2].lower()]) // quotient
        else:
            raise Refused
        if size < 1:
            raise Refused
        return size, ""


class SignalForm:
    """The name of a signal."""

    expected = "a signal's name, such as SIGTERM"
    documented = frozenset({"SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"})

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the name."""
        names = {s.name for s in signal.Signals}
        if isinstance(value, str) and value in names:
            undocumented = value not in self.documented
            return value, f"Fly documents only {', '.join(sorted(self.documented))}" if undocumented else ""
        for guess in (str(value).upper(), "SIG" + str(value).upper()):
            if guess in names:
                raise Refused(f"write {guess}")
        raise Refused


class CommandForm:
    """A command line that splits as a shell would split it."""

    expected = "a command line with balanced quotes"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return it unchanged."""
        if not isinstance(value, str):
            raise Refused
        try:
            shlex.split(value)
        except ValueError as error:
            raise Refused(str(error)) from error
        return value, ""


class WordsForm:
    """A list of strings; one string stands for a list of one."""

    expected = "an array of strings"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the list."""
        words: list[Any] = [value] if isinstance(value, str) else value
        if not isinstance(value, str | list) or not all(isinstance(word, str) for word in words):
            raise Refused
        return words, ""


class PortForm:
    """A port number; flyctl also takes it as a string in `[[services]]`."""

    expected = "a port, 1 to 65535"

    def __init__(self, *, strings: bool) -> None:
        self.strings = strings

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the number."""
        warning = ""
        if isinstance(value, str) and value.isdecimal():
            if not self.strings:
                raise Refused("flyctl does not read a string here: leave the quotes out")
            warning, value = "a port is a number: leave the quotes out", int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise Refused
        return value, warning


class NumberForm:
    """A number within bounds."""

    def __init__(self, least: float, most: float | None = None, *, whole: bool = True) -> None:
        self.least, self.most, self.whole = least, most, whole
        kind = "an integer" if whole else "a number"
        self.expected = f"{kind} from {least} to {most}" if most is not None else f"{kind}, {least} or more"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return it unchanged."""
        number = not isinstance(value, bool) and isinstance(value, int if self.whole else int | float)
        if not number or value < self.least or (self.most is not None and value > self.most):
            raise Refused
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused
        return value, ""


class ChoiceForm:
    """One of a few values."""

    def __init__(self, values: tuple[str, ...] | tuple[int, ...]) -> None:
        self.values = values
        self.expected = f"one of {', '.join(map(str, values))}"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return it unchanged."""
        if isinstance(value, bool) or value not in self.values:
            near = difflib.get_close_matches(str(value), map(str, self.values), n=1)
            raise Refused(f"did you mean {near[0]}?" if near else "")
        return value, ""


class PatternForm:
    """A string of a certain shape."""

    def __init__(self, pattern: str, expected: str) -> None:
        self.pattern = re.compile(pattern)
        self.expected = expected

    def read(self, value: Any) -> tuple[Any, str]:
        """Return it unchanged."""
        if not isinstance(value, str) or not self.pattern.fullmatch(value):
            raise Refused
        return value, ""


class AutostopForm:
    """Whether the proxy stops or suspends idle machines; a boolean is the older form."""

    expected = '"off", "stop" or "suspend"'

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the word."""
        if isinstance(value, bool):
            word = "stop" if value else "off"
            return word, f'the older form: write "{word}"'
        if isinstance(value, str) and value in {"off", "stop", "suspend"}:
            return value, ""
        legacy = {"true": 'write "stop"', "false": 'write "off"'}
        raise Refused(legacy.get(str(value).lower(), ""))


def _nanoseconds(text: str) -> int:
    """Read a Go duration. Raises Refused."""
    if text == "0":
        return 0
    try:
        return round(duration_seconds(text) * 1e9)
    except (ValueError, OverflowError) as error:
        raise Refused("a number needs its unit: s, m or h" if text.isdecimal() else "") from error


def format_duration(nanoseconds: int) -> str:
    """Write a duration as Go's Duration.String does: 90 s is "1m30s", 60 s "1m0s".

    Takes 0 or more. Source: Go's time package.
    """
    if nanoseconds < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if nanoseconds >= size:
                return _decimal(nanoseconds, size) + unit
        return "0s"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, 1_000_000_000) + "s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
