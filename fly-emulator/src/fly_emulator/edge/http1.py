"""HTTP/1.1 on the wire: heads, and where a body ends (RFC 9112). Bodies themselves pass as bytes."""

from __future__ import annotations

import re
from typing import Final, Protocol

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a head, of a chunk's size line, of a trailer line."""
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")


class Malformed(Exception):
    """What was sent is not HTTP/1.1; `status` answers a client."""

    def __init__(self, problem: str, status: int = 400) -> None:
        super().__init__(problem)
        self.status = status


class Headers:
    """Header fields in the order they came, names compared without regard to case."""

    __slots__ = ("items",)

    def __init__(self, items: list[tuple[bytes, bytes]]) -> None:
        self.items = items

    def get(self, name: bytes) -> bytes | None:
        """Return the value, several joined by commas; None where there is none. `name` in lower case."""
        values = [value for key, value in self.items if key.lower() == name]
        return b", ".join(values) if values else None

    def remove(self, *names: bytes) -> None:
        """Drop every field of these names (in lower case)."""
        self.items = [item for item in self.items if item[0].lower() not in names]

    def add(self, name: bytes, value: bytes) -> None:
        """Append a field."""
        self.items.append((name, value))

    def set(self, name: bytes, value: bytes) -> None:
        """Replace every field of the name by one."""
        self.remove(name.lower())
        self.items.append((name, value))

    def tokens(self, name: bytes) -> frozenset[bytes]:
        """Return the comma-separated words of a field, in lower case."""
        value = self.get(name)
        return frozenset(word.strip().lower() for word in value.split(b",")) if value else frozenset()

    def copy(self) -> Headers:
        """Return headers that can be changed on their own."""
        return Headers(list(self.items))


class Framing(Protocol):
    """Where a body ends."""

    complete: bool

    def feed(self, data: bytes) -> int:
        """Take bytes and return how many of them belong to this body. Raises Malformed."""
        ...


class Sized:
    """A body of a known length."""

    __slots__ = ("_left", "complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = length == 0

    def feed(self, data: bytes) -> int:
        """Take bytes and return how many of them belong to this body."""
        taken = min(self._left, len(data))
        self._left -= taken
        self.complete = self._left == 0
        return taken


class UntilClose:
    """A response body that the end of the connection ends."""

    __slots__ = ("complete",)

    def __init__(self) -> None:
        self.complete = False

    def feed(self, data: bytes) -> int:
        """Take bytes: all of them are the body's."""
        return len(data)


class Chunked:
    """A body in chunks (RFC 9112, section 7.1), trailers included."""

    __slots__ = ("_line", "_skip", "_trailers", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._skip = 0
        self._line = b""
        self._trailers = False

    def feed(self, data: bytes) -> int:
        """Take bytes and return how many of them belong to this body. Raises Malformed."""
        at, end = 0, len(data)
        while at < end and not self.complete:
            if self._skip:
                taken = min(self._skip, end - at)
                self._skip -= taken
                at += taken
                continue
            newline = data.find(b"\n", at)
            stop = end if newline < 0 else newline + 1
            self._line += data[at:stop]
            at = stop
            if len(self._line) > HEAD_LIMIT:
                raise Malformed("a chunk's size line has no end")
            if newline >= 0:
                line, self._line = self._line.rstrip(b"\r\n"), b""
                self._take(line)
        return at

    def _take(self, line: bytes) -> None:
        if self._trailers:
            self.complete = not line
            return
        size = line.partition(b";")[0].strip()
        if not _HEX.fullmatch(size):
            raise Malformed("a chunk has no size")
        length = int(size, 16)
        self._trailers = length == 0
        self._skip = length + 2 if length else 0


class RequestHead:
    """A request line and its header fields."""

    __slots__ = ("headers", "method", "target", "version")

    def __init__(self, method: bytes, target: bytes, version: bytes, headers: Headers) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers

    @property
    def persistent(self) -> bool:
        """Whether the client wants to keep its connection."""
        return persistent(self.version, self.headers)

    @property
    def upgrade(self) -> bytes | None:
        """The protocol the client wants to change to, in lower case."""
        value = self.headers.get(b"upgrade")
        wanted = value is not None and b"upgrade" in self.headers.tokens(b"connection")
        return value.strip().lower() if value is not None and wanted else None

    def framing(self) -> Framing:
        """Return where the body ends. Raises Malformed."""
        return _framed(self.headers) or Sized(0)

    def encode(self) -> bytes:
        """Write the head."""
        return _encoded(b"%s %s %s" % (self.method, self.target, self.version), self.headers)


class ResponseHead:
    """A status line and its header fields."""

    __slots__ = ("headers", "reason", "status", "version")

    def __init__(self, version: bytes, status: int, reason: bytes, headers: Headers) -> None:
        self.version = version
        self.status = status
        self.reason = reason
        self.headers = headers

    @property
    def interim(self) -> bool:
        """Whether another head follows."""
        return 100 <= self.status < 200 and self.status != 101

    @property
    def persistent(self) -> bool:
        """Whether the machine keeps its connection."""
        return persistent(self.version, self.headers)

    def framing(self, method: bytes) -> Framing:
        """Return where the body of an answer to `method` ends. Raises Malformed."""
        if method == b"HEAD" or self.status in {204, 304} or self.status < 200:
            return Sized(0)
        return _framed(self.headers) or UntilClose()

    def encode(self) -> bytes:
        """Write the head."""
        return _encoded(b"HTTP/1.1 %d %s" % (self.status, self.reason), self.headers)


def parse_request(head: bytes) -> RequestHead:
    """Read a request's head, up to the empty line. Raises Malformed."""
    first, headers = _fields(head)
    parts = first.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not parts[1]:
        raise Malformed("the request line is malformed")
    if parts[2] not in _VERSIONS:
        raise Malformed("the version is not HTTP/1.1", 505)
    return RequestHead(parts[0], parts[1], parts[2], headers)


def parse_response(head: bytes) -> ResponseHead:
    """Read a response's head, up to the empty line. Raises Malformed."""
    first, headers = _fields(head)
    version, _, rest = first.partition(b" ")
    code, _, reason = rest.partition(b" ")
    if version not in _VERSIONS or len(code) != 3 or not code.isdigit() or code < b"100":
        raise Malformed("the status line is malformed")
    return ResponseHead(version, int(code), reason, headers)


def persistent(version: bytes, headers: Headers) -> bool:
    """Say whether whoever sent these headers keeps the connection."""
    words = headers.tokens(b"connection")
    return b"close" not in words and (version == b"HTTP/1.1" or b"keep-alive" in words)


def _fields(head: bytes) -> tuple[bytes, Headers]:
    first, *lines = head.split(b"\r\n")
    items: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
            raise Malformed("a header field is malformed")
        items.append((name, value.strip(b" \t")))
    return first, Headers(items)


def _framed(headers: Headers) -> Framing | None:
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is not None:
        if length is not None or coding.strip().lower() != b"chunked":
            raise Malformed("the length of the body is ambiguous")
        return Chunked()
    if length is None:
        return None
    values = {value.strip() for value in length.split(b",")}
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise Malformed("the content length is malformed")
    return Sized(int(value))


def _encoded(first: bytes, headers: Headers) -> bytes:
    lines = [first, *(b"%s: %s" % item for item in headers.items), b"", b""]
    return b"\r\n".join(lines)
