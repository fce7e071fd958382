"""Finds the line of a key in TOML text.

The standard library's parser keeps no positions. This scan knows headers, keys and what stands inside strings
and brackets; for a key it does not find it knows the nearest table above, so a wrong line is never named.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]\[]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=(.*)"""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_LEXEME = re.compile(r"""\"\"\"|'''|"(?:\\.|[^"\\])*"|'[^']*'|#.*|[\[\]{}]""")


class Lines:
    """The lines of the keys of one file."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._arrays: dict[str, int] = {}
        table, fence, depth = "", "", 0
        for number, line in enumerate(text.split("\n"), start=1):
            if fence or depth:
                fence, depth = _scan(line, fence, depth)
            elif header := _HEADER.fullmatch(line):
                table = self._header(header[2], number, array=header[1] == "[[")
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._key(table, key[1], number)
                fence, depth = _scan(key[2], "", 0)

    def find(self, key: str) -> int | None:
        """Return the line of a key, else that of the nearest table around it."""
        while key:
            if (line := self._lines.get(key)) is not None:
                return line
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return None

    def _key(self, table: str, text: str, number: int) -> None:
        path = table
        for part in _parts(text):
            path = f"{path}.{part}" if path else part
            self._lines.setdefault(path, number)

    def _header(self, text: str, number: int, *, array: bool) -> str:
        """Return the path of a header, with the index of the newest element where an array is meant."""
        path = ""
        parts = _parts(text)
        for position, part in enumerate(parts, start=1):
            path = f"{path}.{part}" if path else part
            if array and position == len(parts):
                self._lines.setdefault(path, number)
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path = f"{path}[{self._arrays[path]}]"
        return path


def _parts(text: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(text)]


def _scan(text: str, fence: str, depth: int) -> tuple[str, int]:
    """Return which multi-line string and how many brackets are open after this text."""
    while text:
        if fence:
            _, closed, text = text.partition(fence)
            if not closed:
                return fence, depth
            fence = ""
        lexeme = _LEXEME.search(text)
        if lexeme is None:
            break
        mark, text = lexeme[0], text[lexeme.end() :]
        if mark in {'"""', "'''"}:
            fence = mark
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
    return fence, max(depth, 0)
