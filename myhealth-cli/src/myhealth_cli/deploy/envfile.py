"""Secrets as lines of NAME=VALUE: read from a file, and written so that flyctl reads the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy.errors import NothingChangedError

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST: Final = 32_768
"""flyctl stops reading at a line of 64 KB, without a word."""


def values_in(file: Path) -> dict[str, str]:
    """Read KEY=VALUE lines; blank lines and lines with # are left out, quotes around a value are taken off.

    Raises NothingChangedError, which names the line and never quotes it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NothingChangedError(f"{file} cannot be read", hint="name a file of KEY=VALUE lines") from error
    found: dict[str, str] = {}
    # Not splitlines(): it also cuts at form feeds and Unicode's separators, in the middle of a value.
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, sign, value = stripped.removeprefix("export ").partition("=")
        value = value.strip()
        if value[:1] in {'"', "'"} and value[-1:] == value[:1] and len(value) > 1:
            value = value[1:-1]
        if not sign or not name.strip().isidentifier() or not value:
            raise NothingChangedError(f"{file}, line {number} is not KEY=VALUE", hint="correct that line")
        found[name.strip()] = value
    return found


def unfit(value: str) -> str:
    """Return why a value cannot be a secret here, or nothing."""
    if not value.isprintable():
        return "has a character that cannot be printed"
    return f"is longer than {_LONGEST} bytes" if len(value.encode()) > _LONGEST else ""


def line(name: str, value: str) -> str:
    """Write a line for `flyctl secrets import`, whose reader gives back exactly this value.

    It cuts a value at # unless an odd number of double quotes stands before, and takes quotes around it off
    (superfly/flyctl, internal/command/secrets/parser.go). So: quotes around every value, and three double
    ones where they must make that number odd.
    """
    before, hash_sign, _ = value.partition("#")
    quotes = '"""' if hash_sign and before.count('"') % 2 == 0 else "'"
    return f"{name}={quotes}{value}{quotes}\n"
