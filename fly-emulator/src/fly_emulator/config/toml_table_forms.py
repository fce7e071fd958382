"""The forms of the tables of fly.toml that flyctl takes in more than one way, older ones among them.

Source: superfly/flyctl ad0172f (2026-08-21) `internal/appconfig/patches.go`.
"""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

from fly_emulator.config.toml_forms import Refused

_INTEGER = re.compile(r"[+-]?\d{1,15}")


class ConcurrencyForm:
    """The older "soft,hard", which counted requests; a table goes on to the schema."""

    expected = "a table with type, soft_limit and hard_limit"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return a table."""
        if isinstance(value, dict):
            return value, ""
        soft, comma, hard = value.partition(",") if isinstance(value, str) else ("", "", "")
        if not comma or not _INTEGER.fullmatch(soft.strip()) or not _INTEGER.fullmatch(hard.strip()):
            raise Refused(
                "write [services.concurrency] with single brackets" if isinstance(value, list) else ""
            )
        table = {"type": "requests", "soft_limit": int(soft), "hard_limit": int(hard)}
        return table, 'the older form "soft,hard", which means type = "requests": write a table'


class HeadersForm:
    """Header names with strings; flyctl writes other values as text, and takes a list of name and value."""

    expected = 'a table of header names with strings, such as { Host = "example.com" }'

    def read(self, value: Any) -> tuple[Any, str]:
        """Return names with strings."""
        if not isinstance(value, list):
            return cast_strings(value), ""
        headers: dict[str, str] = {}
        for item in value:
            if not isinstance(item, dict) or "name" not in item or set(item) - {"name", "value"}:
                raise Refused
            headers[cast_string(item["name"])] = cast_string(item.get("value", ""))
        return headers, "the older list of name and value: write a table" if value else ""


class EnvForm:
    """Environment variables; flyctl writes other values as text, and takes a list of tables."""

    expected = 'a table of names with strings, such as LOG_LEVEL = "info"'

    def read(self, value: Any) -> tuple[Any, str]:
        """Return names with strings."""
        tables: list[Any] = value if isinstance(value, list) else [value]
        merged: dict[str, str] = {}
        casts: list[str] = []
        for table in tables:
            merged |= cast_strings(table)
            casts += [f"{name} ({merged[name]})" for name, item in table.items() if not isinstance(item, str)]
        notes = [f"not strings, taken as text: {', '.join(casts)}"] if casts else []
        if reserved := sorted(name for name in merged if name.startswith("FLY_")):
            notes.append(f"names that begin with FLY_ are the platform's: {', '.join(reserved)}")
        if isinstance(value, list):
            notes.append("the older list of tables: write [env]")
        return merged, "; ".join(notes)


class ChecksForm:
    """Checks by name; the older list in which each has a `name`."""

    expected = "a table for each check: [checks.NAME]"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return the checks by name."""
        if isinstance(value, dict):
            return value, ""
        if not isinstance(value, list):
            raise Refused
        checks: dict[str, Any] = {}
        for item in value:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise Refused("each check of a list needs a name")
            checks[item["name"]] = {key: part for key, part in item.items() if key != "name"}
        return checks, "the older list: write [checks.NAME]"


class ResponseHeadersForm:
    """Headers the edge adds (a string or strings) or takes away (false)."""

    expected = "a table of header names with a string, an array of strings, or false"

    def read(self, value: Any) -> tuple[Any, str]:
        """Return it unchanged."""
        if not isinstance(value, dict):
            raise Refused
        for name, item in value.items():
            texts: list[Any] = item if isinstance(item, list) else [item]
            if item is not False and not all(isinstance(text, str) for text in texts):
                raise Refused(under=str(name), value=item, expected="a string, an array of strings, or false")
        return value, ""


class ProcessesForm:
    """Process groups with their commands; the older list of name and command."""

    expected = 'a table of group names with commands, such as web = "bin/server"'

    def read(self, value: Any) -> tuple[Any, str]:
        """Return names with commands."""
        if isinstance(value, dict):
            for name, command in value.items():
                self._command(name, command)
            return value, ""
        if not isinstance(value, list):
            raise Refused
        groups: dict[str, str] = {}
        for item in value:
            if not isinstance(item, dict) or set(item) - {"name", "command"}:
                raise Refused
            if "name" in item:
                groups[cast_string(item["name"])] = self._command(item["name"], item.get("command", ""))
        return groups, "the older list: write [processes], or leave it out"

    @staticmethod
    def _command(name: Any, command: Any) -> str:
        if not isinstance(command, str):
            raise Refused(under=str(name), value=command)
        try:
            shlex.split(command)
        except ValueError as error:
            raise Refused(
                f"it does not split: {error}", under=str(name), value=command, expected="a command line"
            ) from error
        return command


def cast_strings(table: Any) -> dict[str, str]:
    """Return a table's values as flyctl writes them. Raises Refused."""
    if not isinstance(table, dict):
        raise Refused
    cast: dict[str, str] = {}
    for name, value in table.items():
        try:
            cast[str(name)] = cast_string(value)
        except Refused as refused:
            raise Refused(refused.hint, under=str(name), value=value) from refused
    return cast


def cast_string(value: Any) -> str:
    """Write a scalar as Go's %v does. Raises Refused for tables and arrays."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return _go_float(value)
        case _:
            raise Refused("only strings, numbers and booleans are values here")


def _go_float(value: float) -> str:
    """Write a float as Go's %v: the shortest digits, an exponent below 1e-4 and from 1e21 on."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    if value == 0 or 1e-4 <= abs(value) < 1e21:
        return format(value, "f" if abs(value) >= 1e16 else "").removesuffix(".0").removesuffix(".000000")
    return repr(value)
