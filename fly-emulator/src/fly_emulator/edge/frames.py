"""WebSocket frames as they pass (RFC 6455, section 5): where one ends, so that one of ours fits between."""

from __future__ import annotations

import struct
from typing import Final

_CLOSE: Final = 0x8


class FrameTracker:
    """Follows one direction of a WebSocket without holding any of it."""

    __slots__ = ("_header", "_payload", "_sent_close")

    def __init__(self) -> None:
        self._header = b""
        self._payload = 0
        self._sent_close = False

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte seen ended a frame, or none was seen."""
        return not self._header and not self._payload

    @property
    def closed(self) -> bool:
        """Whether a close frame has begun; nothing may follow it."""
        return self._sent_close

    def feed(self, data: bytes, *, one: bool = False) -> int:
        """Follow `data` and return how much was taken: all of it, or with `one` up to a frame's end."""
        at, end = 0, len(data)
        while at < end:
            if self._payload:
                taken = min(self._payload, end - at)
                self._payload -= taken
                at += taken
            else:
                at = self._begin(data, at)
            if one and self.at_boundary:
                break
        return at

    def _begin(self, data: bytes, at: int) -> int:
        """Take what is missing of a frame's header."""
        while at < len(data):
            missing = _header_length(self._header) - len(self._header)
            piece = data[at : at + missing]
            self._header += piece
            at += len(piece)
            if len(self._header) == _header_length(self._header):
                self._payload = _payload_length(self._header)
                self._sent_close |= self._header[0] & 0xF == _CLOSE
                self._header = b""
                break
        return at


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a server's close frame: unmasked, the code and a reason of at most 123 bytes."""
    payload = struct.pack("!H", code) + reason.encode()
    if len(payload) > 125:
        raise ValueError("a close frame's reason has at most 123 bytes")
    return bytes((0x80 | _CLOSE, len(payload))) + payload


def _header_length(header: bytes) -> int:
    if len(header) < 2:
        return 2
    length = header[1] & 0x7F
    extended = 2 if length == 126 else 8 if length == 127 else 0
    return 2 + extended + (4 if header[1] & 0x80 else 0)


def _payload_length(header: bytes) -> int:
    length = header[1] & 0x7F
    if length == 126:
        return int.from_bytes(header[2:4])
    return int.from_bytes(header[2:10]) if length == 127 else length
