"""A command line as flyctl reads it: the command's words, then flags and arguments in any order.

A command or flag that is not in the table is an error that names it. Source: spf13/cobra and pflag, by whose
rules `--flag VALUE`, `--flag=VALUE`, `-f VALUE` and `-fVALUE` are the same, and a switch takes `=false`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fly_emulator.flyctl.errors import FlyctlError

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Flag(NamedTuple):
    """A flag. A bool as `default` makes a switch, a tuple one that may be repeated."""

    default: bool | str | tuple[str, ...] = ""
    short: str = ""


class Call(NamedTuple):
    """What was asked: the command's function, its flags by name, its arguments."""

    run: Callable[[Call], None]
    flags: dict[str, Any]
    arguments: tuple[str, ...]


class Command(NamedTuple):
    """A command. `most`: how many arguments it takes."""

    run: Callable[[Call], None]
    flags: Mapping[str, Flag]
    most: int = 0


def read(words: Sequence[str], commands: Mapping[str, Command]) -> Call:
    """Find the command and read its flags. Raises FlyctlError: an unknown command, flag or argument."""
    name, command, rest = _command(words, commands)
    flags: dict[str, Any] = {each: flag.default for each, flag in command.flags.items()}
    arguments: list[str] = []
    waiting = list(rest)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            arguments += waiting
            break
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            continue
        found, value = _flag(word, command.flags)
        flags[found] = _value(found, command.flags[found], value, waiting, flags[found])
    if len(arguments) > command.most:
        raise FlyctlError(f'unknown command "{arguments[command.most]}" for "flyctl {name}"')
    return Call(command.run, flags, tuple(arguments))


def _command(words: Sequence[str], commands: Mapping[str, Command]) -> tuple[str, Command, Sequence[str]]:
    for count in (3, 2, 1):
        if found := commands.get(name := " ".join(words[:count])):
            return name, found, words[count:]
    group = bool(words) and any(each.startswith(f"{words[0]} ") for each in commands)
    unknown = " ".join(words[: 2 if group else 1])
    raise FlyctlError(
        f'unknown command "{unknown}" for "flyctl"', f"This stand-in has: {', '.join(sorted(commands))}"
    )


def _flag(word: str, known: Mapping[str, Flag]) -> tuple[str, str | None]:
    """Return the flag's name and the value behind `=` or the letter, None where there is none."""
    name, sign, value = word.partition("=")
    if word.startswith("--"):
        if name[2:] in known:
            return name[2:], value if sign else None
        raise FlyctlError(f"unknown flag: {name}")
    for each, flag in known.items():
        if flag.short and word[1] == flag.short:
            rest = word[2:].removeprefix("=")
            return each, rest if len(word) > 2 else None
    raise FlyctlError(f"unknown shorthand flag: {word[1]!r} in {word}")


def _value(name: str, flag: Flag, value: str | None, waiting: list[str], before: Any) -> Any:
    if isinstance(flag.default, bool):
        if value is None or value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise FlyctlError(f'invalid argument "{value}" for "--{name}" flag: not a boolean')
    if value is None:
        if not waiting:
            raise FlyctlError(f"flag needs an argument: --{name}")
        value = waiting.pop(0)
    return (*before, value) if isinstance(flag.default, tuple) else value
