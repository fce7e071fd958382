"""Where a request ends: whatever could be read in two ways is refused, and nothing behind it is served."""

from __future__ import annotations

import asyncio

import pytest

from .client import PATIENCE
from .conftest import Pair

HEADS = {
    "a length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked",
    "chunks and a length": b"Transfer-Encoding:\tchunked\r\nContent-Length: 5",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5",
    "two encodings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "chunks that are not last": b"Transfer-Encoding: chunked, identity",
    "a space before the colon": b"Content-Length : 4",
    "a sign": b"Content-Length: +4",
    "another base": b"Content-Length: 0x5",
    "a folded line": b"Transfer-Encoding:\r\n chunked",
    "a bare line feed": b"X: y\nTransfer-Encoding: chunked",
    "an unknown encoding": b"Transfer-Encoding: xchunked",
}
"""RFC 9112, sections 5.1, 5.2, 6.1 and 6.3."""


@pytest.mark.parametrize("case", HEADS)
async def test_a_request_whose_end_is_unclear_hides_no_other(pair: Pair, case: str) -> None:
    host, _, port = pair.a.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = b"PUT /v1/sessions/x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + HEADS[case]
        hidden = b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        writer.write(head + b"\r\n\r\n0\r\n\r\n" + hidden)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            told = await reader.read()
    finally:
        writer.close()
    assert b'"release"' not in told
    assert told.count(b"HTTP/1.1 ") <= 1
    assert told.startswith(b"HTTP/1.1 400 ") or case == "an unknown encoding", told
