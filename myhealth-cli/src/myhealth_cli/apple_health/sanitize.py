"""Make Apple's XML digestible for a strict parser, without moving a single byte.

Real exports break XML in known ways: since iOS 16 the DTD is malformed (a declaration lacks its `>`), and
names typed on other devices carry control characters such as U+000B. `Sanitizer` overwrites both with
spaces, so byte offsets in later errors still point into the original file. Dropping the whole DOCTYPE also
removes every entity declaration before the parser sees it: no entity expansion, no external entities.
"""

from __future__ import annotations

import re
from typing import Final

from myhealth_cli.errors import ExportDamagedError

_MAX_PROLOG: Final = 1 << 20
_MAX_REFERENCE: Final = 16  # "&#x0000000B;" is as long as a sane reference gets
_CONTROL: Final = bytes(c if c >= 32 or c in b"\t\n\r" else 32 for c in range(256))
_REFERENCE: Final = re.compile(rb"&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,8}));")
_ROOT: Final = re.compile(rb"<[A-Za-z_]")
_SUBSET_END: Final = re.compile(rb"\]\s*>")


class Sanitizer:
    """A byte filter: `feed` gives cleaned bytes (possibly fewer for now), `close` the rest.

    The bytes given out are, in order, as many as went in. Raises ExportDamagedError when the part before
    the root element exceeds 1 MiB.
    """

    def __init__(self) -> None:
        self._held = b""
        self._in_prolog = True

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the file; give what can be parsed already."""
        data = self._held + chunk if self._held else chunk
        self._held = b""
        if self._in_prolog:
            end = _prolog_end(data)
            if end is None:
                self._hold_prolog(data)
                return b""
            data = _without_doctype(data[:end]) + data[end:]
            self._in_prolog = False
        cut = data.rfind(b"&", max(0, len(data) - _MAX_REFERENCE))
        if cut >= 0 and data.find(b";", cut) < 0:
            self._held, data = data[cut:], data[:cut]
        return _clean(data)

    def close(self) -> bytes:
        """Give what was held back, at the end of the file."""
        held, self._held = self._held, b""
        return _clean(_without_doctype(held) if self._in_prolog else held)

    def _hold_prolog(self, data: bytes) -> None:
        if len(data) > _MAX_PROLOG:
            raise ExportDamagedError(
                "no root element within the first MiB", offset=0, element="the DOCTYPE before <HealthData>"
            )
        self._held = data


def _clean(data: bytes) -> bytes:
    # translate is one pass in C; the pattern runs only where a chunk has such a reference at all.
    data = data.translate(_CONTROL)
    return _REFERENCE.sub(_blank_if_illegal, data) if b"&#" in data else data


def _blank_if_illegal(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16) if match[1] else int(match[2])
    legal = code in {9, 10, 13} or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
    return match[0] if legal and code <= 0x10FFFF else b" " * len(match[0])


def _doctype_span(data: bytes) -> tuple[int, int | None] | None:
    """Where the DOCTYPE starts and ends (None: not yet); None when there is no DOCTYPE before the root.

    The subset is not parsed, because Apple's is malformed: it ends at the first `]>` that closes it.
    """
    start = data.find(b"<!DOCTYPE")
    root = _ROOT.search(data)
    if start < 0 or (root is not None and root.start() < start):
        return None
    subset, close = data.find(b"[", start), data.find(b">", start)
    if subset < 0 or 0 <= close < subset:
        return start, (close + 1 if close >= 0 else None)
    end = _SUBSET_END.search(data, subset)
    return start, end.end() if end else None


def _prolog_end(data: bytes) -> int | None:
    span = _doctype_span(data)
    if span is None:
        root = _ROOT.search(data)
        return root.start() if root else None
    return span[1]


def _without_doctype(data: bytes) -> bytes:
    span = _doctype_span(data)
    if span is None:
        return data
    start, end = span[0], len(data) if span[1] is None else span[1]
    blank = bytes(c if c in b"\r\n" else 32 for c in data[start:end])
    return data[:start] + blank + data[end:]
