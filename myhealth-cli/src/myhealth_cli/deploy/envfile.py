"""Secrets as lines of NAME=VALUE, written so that flyctl reads exactly what was meant."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 32_768
"""flyctl stops reading at a line of 64 KB, without a word."""


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
