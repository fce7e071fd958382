from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myhealth_cli.sse import EventTooLargeError, Frame, SseParser

STREAM = (
    "\ufeff: a comment\n"
    'id: 5-1\ndata: {"größe": 1}\n\n'
    "event: other\rdata: one\rdata:two\r\r"
    "id: 5-2\r\ndata:\r\ndata: \r\n\r\n"
    "id: no\0good\ndata: x\nunknown: y\nretry: 1000\nretry: soon\n\n"
    "id: 5-3\n\n"
    "data: cut off"
).encode()

FRAMES = [
    Frame('{"größe": 1}'.encode(), "", "5-1"),
    Frame(b"one\ntwo", "other", None),
    Frame(b"\n", "", "5-2"),
    Frame(b"x", "", None),
]


def read(chunks: list[bytes]) -> tuple[list[Frame], int | None]:
    parser = SseParser()
    return [frame for chunk in chunks for frame in parser.feed(chunk)], parser.retry_ms


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def test_fields_comments_line_ends_and_what_the_standard_ignores() -> None:
    assert read([STREAM]) == (FRAMES, 1000)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_cuts_anywhere_change_nothing(places: list[int]) -> None:
    assert read(cut(STREAM, places)) == (FRAMES, 1000)


def test_byte_by_byte() -> None:
    assert read([bytes([byte]) for byte in STREAM]) == (FRAMES, 1000)


_line = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
_end = st.sampled_from(["\n", "\r\n", "\r"])


@given(
    st.lists(st.tuples(_line, st.lists(_line, min_size=1, max_size=3), _end), max_size=5),
    st.lists(st.integers(0, 600), max_size=6),
)
def test_what_was_written_is_read(events: list[tuple[str, list[str], str]], places: list[int]) -> None:
    written = "".join(
        f"id: {name}{end}" + "".join(f"data: {line}{end}" for line in lines) + end
        for name, lines, end in events
    ).encode()
    # A stream never ends in a bare CR that must be told apart from CRLF: a comment follows.
    frames, _ = read([*cut(written, [min(place, len(written)) for place in places]), b": end\n"])
    assert frames == [Frame("\n".join(lines).encode(), "", name) for name, lines, _ in events]


def test_an_event_without_end_is_refused_before_memory_is() -> None:
    parser = SseParser(limit=1000)
    parser.feed(b"data: " + b"x" * 900)
    with pytest.raises(EventTooLargeError):
        parser.feed(b"x" * 100)


def test_many_lines_of_one_event_count_together() -> None:
    parser = SseParser(limit=1000)
    for _ in range(76):
        parser.feed(b"data: 1234567\n")
    with pytest.raises(EventTooLargeError):
        parser.feed(b"data: 1234567\n")
