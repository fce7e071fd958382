"""Server-sent events from bytes, as the WHATWG HTML standard (9.2.6) reads them.

Bytes arrive cut anywhere, also inside a character or between CR and LF; that must not change what is read.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from myhealth_cli.errors import MyHealthError

MAX_EVENT: Final = 64 << 20
"""Bytes one event may have. A long conversation's snapshot is far below; a server gone mad is not."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    """One dispatched event; `id` is None where it names none."""

    data: bytes
    event: str
    id: str | None


class EventTooLargeError(MyHealthError):
    """The server sent more than MAX_EVENT bytes without ending an event."""


class SseParser:
    """Turns chunks of a text/event-stream into frames.

    `retry_ms` is the last reconnection time the server asked for. An event that the stream's end cuts off
    is not dispatched: the standard discards it, and a resumed stream brings it again.
    """

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self.retry_ms: int | None = None
        self._limit = limit
        self._rest = bytearray()
        self._scanned = 0
        self._at_start = True
        self._size = 0
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes] = []
        self._event = ""
        self._id: str | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that `chunk` completes. Raises EventTooLargeError."""
        self._rest += chunk
        if self._at_start:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._at_start = False
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        frames = [frame for line in self._lines() if (frame := self._take(line)) is not None]
        if len(self._rest) + self._size > self._limit:
            raise EventTooLargeError(f"the server sent an event of more than {self._limit:,} bytes")
        return frames

    def _lines(self) -> list[bytes]:
        """Cut the complete lines off; a CR at the very end may be half of a CRLF and stays."""
        lines: list[bytes] = []
        start = 0
        for match in _LINE_END.finditer(self._rest, self._scanned):
            if match.end() == len(self._rest) and match[0] == b"\r":
                break
            lines.append(bytes(self._rest[start : match.start()]))
            start = match.end()
        del self._rest[:start]
        # Only the last byte can still become a line's end; what is before it has been looked at.
        self._scanned = max(0, len(self._rest) - 1)
        return lines

    def _take(self, line: bytes) -> Frame | None:
        if not line:
            frame = Frame(b"\n".join(self._data), self._event, self._id) if self._data else None
            self._clear()
            return frame
        self._size += len(line)
        name, _, value = line.partition(b":")
        self._set(name, value.removeprefix(b" "))
        return None

    def _set(self, name: bytes, value: bytes) -> None:
        """Note a field; comments (no name) and unknown ones are ignored."""
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._event = value.decode("utf-8", "replace")
            case b"id" if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit():
                self.retry_ms = int(value)
            case _:
                pass
