"""Server-sent events from bytes: the payloads of complete events, however the network splits them.

Rules: WHATWG HTML, "9.2.6 Interpreting an event stream". Only `data` is kept: the Messages API repeats
the event's name inside its JSON, and its ids and retry hints mean nothing for a POST.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"
_DATA = b"data:"
_FIELD = b"\ndata:"


class EventTooLargeError(ValueError):
    """One event exceeds the parser's bound; the stream cannot be trusted any more."""


class SseParser:
    """Cuts a byte stream into events. One parser per stream; `limit` bounds one event, in bytes."""

    __slots__ = ("_at_start", "_limit", "_rest", "_skip_lf")

    def __init__(self, limit: int = 8 * 1024 * 1024) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._at_start = True
        self._skip_lf = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take what the network gave; return the `data` of every event now complete, in order.

        Comments and events without data give nothing. Raises EventTooLargeError.
        """
        if self._at_start or self._skip_lf or b"\r" in chunk:
            chunk = self._normalise(chunk)
        rest = self._rest
        if rest:
            seen = len(rest) - 1
            rest += chunk
            end = rest.rfind(b"\n\n", max(seen, 0))
            if end < 0:
                self._check()
                return []
            frames = bytes(rest[:end])
            del rest[: end + 2]
        else:
            end = chunk.rfind(b"\n\n")
            if end < 0:
                rest += chunk
                self._check()
                return []
            frames = chunk[:end]
            if len(chunk) > end + 2:
                rest += chunk[end + 2 :]
        self._check()
        return [data for frame in frames.split(b"\n\n") if (data := _data(frame))]

    def _check(self) -> None:
        if len(self._rest) > self._limit:
            raise EventTooLargeError(f"an event is larger than {self._limit} bytes")

    def _normalise(self, chunk: bytes) -> bytes:
        """Drop a byte order mark at the start and turn CRLF and lone CR into LF, also across chunks."""
        if self._at_start:
            self._rest += chunk
            if _BOM.startswith(self._rest[:3]) and len(self._rest) < len(_BOM):
                return b""
            chunk = bytes(self._rest).removeprefix(_BOM)
            self._rest.clear()
            self._at_start = False
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if chunk.endswith(b"\r"):
            self._skip_lf = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(frame: bytes) -> bytes:
    """Return the joined `data` lines of one frame (no blank line inside); empty if it has none."""
    at = 0 if frame.startswith(_DATA) else frame.find(_FIELD) + 1
    if at == 0 and not frame.startswith(_DATA):
        return b""
    if frame.find(b"\n", at) < 0:
        value = frame[at + len(_DATA) :]
        return value[1:] if value.startswith(b" ") else value
    lines = [line[len(_DATA) :] for line in frame[at:].split(b"\n") if line.startswith(_DATA)]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines)
