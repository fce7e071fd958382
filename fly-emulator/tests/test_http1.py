"""Heads and bodies on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.edge.http1 import (
    Chunked,
    Framing,
    Malformed,
    Sized,
    UntilClose,
    parse_request,
    parse_response,
)

cuts = st.lists(st.integers(1, 50), min_size=1)


def feed(framing: Framing, data: bytes, sizes: list[int]) -> int:
    """Feed in pieces; returns how much was taken before the body was complete."""
    at, turn = 0, 0
    while at < len(data) and not framing.complete:
        piece = data[at : at + sizes[turn % len(sizes)]]
        taken = framing.feed(piece)
        at += taken
        turn += 1
        if taken < len(piece):
            break
    return at


@given(st.lists(st.binary(min_size=1, max_size=80)), st.integers(0, 2), st.binary(max_size=50), cuts)
def test_a_chunked_body_ends_where_it_ends_however_it_is_cut(
    chunks: list[bytes], trailers: int, after: bytes, sizes: list[int]
) -> None:
    pieces = [b"%x;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    body = b"".join(pieces) + b"0\r\n" + b"X-Sum: 1\r\n" * trailers + b"\r\n"
    framing = Chunked()
    assert feed(framing, body + after, sizes) == len(body)
    assert framing.complete


@given(st.binary(max_size=100), st.binary(max_size=20), cuts)
def test_a_sized_body_ends_where_it_ends(body: bytes, after: bytes, sizes: list[int]) -> None:
    framing = Sized(len(body))
    assert feed(framing, body + after, sizes) == len(body)
    assert framing.complete


@given(st.binary(max_size=400), cuts)
def test_bytes_that_are_no_chunks_end_in_malformed_or_in_waiting(data: bytes, sizes: list[int]) -> None:
    framing = Chunked()
    try:
        assert 0 <= feed(framing, data, sizes) <= len(data)
    except Malformed as error:
        assert error.status == 400  # noqa: PT017 - both outcomes are right


@given(st.binary(max_size=200))
def test_no_head_breaks_the_parser(data: bytes) -> None:
    for parse in (parse_request, parse_response):
        try:
            parse(data)
        except Malformed:
            continue


@pytest.mark.parametrize(
    ("head", "method", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"GET", Sized),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5", b"GET", Sized),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", b"GET", Chunked),
        (b"HTTP/1.1 200\r\nDate: x", b"GET", UntilClose),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"HEAD", Sized),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked", b"GET", Sized),
    ],
)
def test_where_a_response_ends(head: bytes, method: bytes, kind: type) -> None:
    framing = parse_response(head).framing(method)
    assert isinstance(framing, kind)
    assert framing.complete == (method == b"HEAD" or b" 204 " in head)


def test_fields_keep_their_order_and_ignore_case() -> None:
    head = parse_request(
        b"GET /a HTTP/1.1\r\nHost: x\r\nA: 1\r\na:\t2 \r\nConnection: Keep-Alive, Upgrade\r\nUpgrade: W"
    )
    assert head.headers.get(b"a") == b"1, 2"
    assert head.upgrade == b"w"
    assert head.persistent
    head.headers.set(b"A", b"3")
    assert head.encode().endswith(b"Upgrade: W\r\nA: 3\r\n\r\n")
