"""The parser of event streams: the same events, however the network cuts the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.engines.sse import EventTooLargeError, SseParser

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'event: ping\ndata: {"n": 1}\n\n'
    b"\n\n"
    b"id: 7\r\ndata: two\r\ndata:lines\r\n\r\n"
    b"retry: 5\n\n"
    b"data: cr only\r\r"
    b"data:  kept space\n"
    b"event: late\n\n"
    b"data: unfinished\n"
)
EVENTS = [b'{"n": 1}', b"two\nlines", b"cr only", b" kept space"]


def parse(chunks: list[bytes]) -> list[bytes]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_one_chunk() -> None:
    assert parse([STREAM]) == EVENTS


def test_cut_at_every_byte() -> None:
    for at in range(len(STREAM) + 1):
        assert parse([STREAM[:at], STREAM[at:]]) == EVENTS, at


@pytest.mark.parametrize("size", range(1, 9))
def test_chunks_of_a_few_bytes(size: int) -> None:
    assert parse([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == EVENTS


_lines = st.sampled_from([b"data: x", b"data:", b"data: {}", b": c", b"event: e", b"junk", b"", b"data"])
_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    lines=st.lists(st.tuples(_lines, _ends), max_size=20),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
def test_cuts_never_matter(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert parse(chunks) == _by_the_book(lines)


def _by_the_book(lines: list[tuple[bytes, bytes]]) -> list[bytes]:
    # A line that ends in CR before one that begins with LF makes one CRLF: join first, then split.
    text = b"".join(line + end for line, end in lines).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if not line:
            events.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return [event for event in events if event]


def test_a_huge_event_within_the_limit_arrives_whole() -> None:
    parser = SseParser(limit=200_000)
    payload = b"x" * 150_000
    stream = b"data: " + payload + b"\n\n"
    chunks = [stream[at : at + 1000] for at in range(0, len(stream), 1000)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == [payload]


def test_an_event_without_end_is_cut_at_the_limit() -> None:
    parser = SseParser(limit=10_000)
    for _ in range(10):
        assert parser.feed(b"x" * 1000) == []
    with pytest.raises(EventTooLargeError):
        parser.feed(b"x" * 1000)
