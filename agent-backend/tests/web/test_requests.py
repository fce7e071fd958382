from __future__ import annotations

import json
import tracemalloc
from contextlib import ExitStack, suppress
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from agent_backend.errors import InvalidRequest, MalformedRequest, PayloadTooLarge
from agent_backend.web import requests
from agent_backend.web.requests import (
    DRAIN_BYTES,
    ClientGone,
    Held,
    NoRoom,
    Room,
    TooLargeToDrain,
    clean_text,
    decode_json,
    decode_query,
    read_body,
)


class Note(msgspec.Struct, forbid_unknown_fields=True):
    content: str
    tags: list[dict[str, str]] = []


ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
NOTE = msgspec.json.Decoder(Note)


class Wire:
    """A client that sends these pieces; counts what is read of them."""

    def __init__(self, *pieces: bytes, endless: bool = False) -> None:
        self._pieces = list(pieces)
        self._endless = endless
        self.read = 0

    async def __call__(self) -> Message:
        piece = self._pieces[0] if self._endless else self._pieces.pop(0)
        self.read += len(piece)
        return {"type": "http.request", "body": piece, "more_body": self._endless or bool(self._pieces)}


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert await read_body({"headers": []}, Wire(b"abc", b"de"), 5, Held(Room(1000))) == b"abcde"


async def test_a_body_over_the_limit_is_thrown_away_so_that_the_client_reads_the_answer() -> None:
    wire = Wire(b"abc", b"def", b"ghi")
    with pytest.raises(PayloadTooLarge) as refused:
        await read_body({"headers": []}, wire, 5, Held(Room(1000)))
    assert not isinstance(refused.value, TooLargeToDrain)
    assert wire.read == 9


async def test_a_body_without_end_is_not_thrown_away_for_ever() -> None:
    wire = Wire(b"x" * 1_000_000, endless=True)
    with pytest.raises(TooLargeToDrain):
        await read_body({"headers": []}, wire, 5, Held(Room(1000)))
    assert wire.read <= DRAIN_BYTES + 3_000_000


async def test_an_announced_size_over_the_limit_is_believed() -> None:
    wire = Wire(b"never asked for")
    with pytest.raises(TooLargeToDrain):
        await read_body({"headers": [(b"content-length", b"99999999999")]}, wire, 5, Held(Room(1000)))
    assert wire.read == 0


async def test_a_client_that_leaves_while_its_body_is_thrown_away_gets_no_answer() -> None:
    pieces: list[Message] = [
        {"type": "http.request", "body": b"x" * 9, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    with pytest.raises(ClientGone):
        await read_body({"headers": []}, receive, 5, Held(Room(1000)))


async def test_bodies_share_a_room_and_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SMALL_BODY", 2)
    room, users = Room(40), [UUID(int=n) for n in range(6)]

    async def put(user: UUID, held: Held, size: int) -> None:
        assert await read_body({"headers": []}, Wire(b"1" * size), 100, held) == b"1" * size

    with ExitStack() as stack:
        for user in users[:4]:
            await put(user, stack.enter_context(Held(room, user)), 10)
        with pytest.raises(NoRoom), Held(room, users[4]) as more:
            await put(users[4], more, 3)
        with Held(room, users[4]) as small:
            await put(users[4], small, 2)
    assert room.held == 0
    with Held(room, users[0]) as first:
        await put(users[0], first, 8)
        with pytest.raises(NoRoom), Held(room, users[0]) as second:
            await put(users[0], second, 3)  # a quarter is one user's
        with Held(room, users[1]) as other:
            await put(users[1], other, 10)
    with Held(room, users[0]) as alone:  # however small the room is
        await put(users[0], alone, 90)
    assert (room.held, dict(room.by_user)) == (0, {})


def test_nesting_beyond_reason_is_malformed() -> None:
    with pytest.raises(MalformedRequest):
        decode_json(b"[" * 200_000, ANYTHING)


def test_a_control_character_deep_inside_is_named_by_its_path() -> None:
    body = rb'{"content": "fine", "tags": [{"a": "b"}, {"a": "c\u0000"}]}'
    with pytest.raises(InvalidRequest) as refused:
        decode_json(body, NOTE)
    assert refused.value.errors == (("$.tags[1].a", "contains the control character U+0000"),)


def test_a_wrong_item_of_a_list_is_named_by_its_index() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_json(b'{"tags": [{"a": "b"}, {"a": 1}], "content": "x"}', NOTE)
    assert refused.value.errors[0].field.startswith("$.tags[1]")


@pytest.mark.parametrize(
    "number", [b"1e308", b"-5.5E-324", b"1.7976931348623157e+308", b"9" * 4000, b"1" + b"0" * 300 + b"e308"]
)
@pytest.mark.parametrize("between", [b",", b" , ", b",\n", b'],"a":['])
def test_numbers_that_take_long_to_read_are_refused_unread(number: bytes, between: bytes) -> None:
    body = b'{"x": [' + between.join([number] * 60) + b"]}" + b" " * 5000
    with pytest.raises(MalformedRequest) as refused:
        decode_json(body, ANYTHING)
    assert refused.value.errors == (("$", "has too many numbers of extreme size"),)


def test_what_only_looks_like_such_numbers_passes() -> None:
    ids = [f"{n:08x}-1e30-4e99-8e12-{n:04x}1e308e30" for n in range(500)]
    numbers = [6.123233995736766e-17, 1e99, 1e-05, 72.12345678901234, 123456789012] * 200
    text = "Between 5e300, and 1e308 there is nothing. " * 20
    body = msgspec.json.encode({"ids": ids, "numbers": numbers, "text": text})
    assert decode_json(body, ANYTHING) == {"ids": ids, "numbers": numbers, "text": text}


def test_a_few_of_such_numbers_are_read() -> None:
    assert decode_json(b"[" + b"1e308, " * 20 + b"0]" + b" " * 5000, ANYTHING)[0] == 1e308


@pytest.mark.parametrize("last", [rb"\u0000", rb"\ud800"])
def test_a_long_name_over_many_items_costs_no_more_than_the_body(last: bytes) -> None:
    name = b"n" * 100_000
    body = b'{"' + name + b'": ["' + last + b'"' + b", 1" * 50_000 + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refused:
            decode_json(body, ANYTHING)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.errors[0].field.startswith("$.nnn")
    assert peak < 100 * len(body)


def test_a_control_character_in_a_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_json(rb'{"a\u0000": "b"}', ANYTHING)
    assert refused.value.errors[0].field == "$"


def test_escapes_that_only_look_like_control_characters_are_text() -> None:
    body = rb'{"content": "C:\\boot \\u0000 \u0009 \u000a \r\n"}'
    assert decode_json(body, NOTE).content == "C:\\boot \\u0000 \t \n \r\n"


def test_control_characters_pass_where_the_operation_looks_itself() -> None:
    assert decode_json(rb'{"content": "\u0007"}', NOTE, strict_text=False).content == "\x07"


@given(st.binary(max_size=200))
def test_bytes_are_decoded_or_refused_and_nothing_else(body: bytes) -> None:
    with suppress(InvalidRequest, MalformedRequest):
        assert decode_json(body, ANYTHING) == msgspec.json.decode(body)


@given(st.text(alphabet=st.characters(max_codepoint=0xFFFF), max_size=50))
def test_exactly_the_text_that_can_be_stored_passes(text: str) -> None:
    body = '{"content": "' + "".join(f"\\u{ord(character):04x}" for character in text) + '"}'
    forbidden = {*map(chr, range(32)), "\x7f"} - {"\t", "\n", "\r"}
    # Two halves may form a pair: JSON's own rule, so let JSON say what the text is.
    meant: str = json.loads(body)["content"]
    storable = not forbidden & {*meant} and not any("\ud800" <= each <= "\udfff" for each in meant)
    try:
        passed = decode_json(body.encode(), NOTE).content == meant
    except InvalidRequest:
        passed = False
    assert passed == storable


@given(st.binary(max_size=100))
def test_a_query_is_read_or_refused_and_nothing_else(query: bytes) -> None:
    with suppress(InvalidRequest, MalformedRequest):
        assert decode_query(query, Note).content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("x" * 11, "is longer than 10 characters"),
        ("a\x00", "contains the control character U+0000"),
        ("a\x1b[2J", "contains the control character U+001B"),
        ("a\udc80", "contains the lone surrogate U+DC80"),
    ],
)
def test_text_that_is_not_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        clean_text("$.title", text, 10)
    assert refused.value.errors == (("$.title", reason),)


def test_text_is_kept_as_it_is() -> None:
    assert clean_text("$.title", " Gut!\t🙂\n", 10) == " Gut!\t🙂\n"
