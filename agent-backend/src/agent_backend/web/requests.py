"""Reading requests: bodies within a limit, JSON into structs, and text that Postgres can hold.

Every refusal names the field: `$.content` in the body, `query.limit`, `path.session_id`.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from starlette.types import Receive, Scope

from agent_backend.errors import (
    FieldError,
    InvalidRequest,
    MalformedRequest,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
    UnsupportedMediaType,
)

T = TypeVar("T")

BODY_SECONDS = 60.0
"""What a client has to send a body in: 8 MiB at the uplink of a poor phone connection."""
GRACE_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 1024
"""What a body has to come at after the grace, on average: far below what a poor connection does."""
SMALL_BODY = 64 * 1024
DRAIN_BYTES = 32 * 1024 * 1024
_DRAIN_SECONDS = 10

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""C0 controls but tab and line ends, DEL, and lone surrogates: not text, and Postgres refuses U+0000."""
_SUSPECT = re.compile(rb"\\(?:u00[017]|[bf])|\x7f")
"""How such a character can stand in a body that is valid JSON."""
_MOST_ITEMS = 10_000
_MOST_INDEXED = 2 * 1024 * 1024
"""The index of a wrong item is looked for among so many, in a body of so many bytes."""
_NUMERALS = bytes.maketrans(b"123456789E", b"000000000e")
_EXTREME = re.compile(rb"e[+-]?000+(?=[,\]}\s]|\Z)")
_MOST_EXTREME = 50
_LONG_NUMERAL = b"0" * 400
_SMALL = 4096
"""A number such as 1e308 takes msgspec 17 us for its five bytes, a usual one 0.03 us; one of thousands of
digits a quarter of a millisecond. No field of ours has use for them; text that reads so by chance has few."""
_Place: TypeAlias = "tuple[_Place, str | int] | None"
"""Where a value stands: its parent's place, and its key or index there; None for the root."""
_AT_PATH = re.compile(r"^(?P<reason>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


class ClientGone(Exception):
    """The client went away while it was sending."""


class NoRoom(Unavailable):
    """Too many bodies are being read or worked on; this one was not read, so its connection is closed."""


class Room:
    """How many bytes of bodies may be in memory, over all requests that are read or worked on.

    A user gets a quarter of it, and a body alone always has room. Small bodies are let through: messages must
    not wait for uploads, and how many requests a user has at once is bounded elsewhere.
    """

    __slots__ = ("by_user", "held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.by_user: defaultdict[UUID | None, int] = defaultdict(int)


class Held:
    """What one request takes of the room, until the block ends."""

    __slots__ = ("_bytes", "_room", "_user_id")

    def __init__(self, room: Room, user_id: UUID | None = None) -> None:
        self._room = room
        self._user_id = user_id
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.held -= self._bytes
        self._room.by_user[self._user_id] -= self._bytes
        if not self._room.by_user[self._user_id]:
            del self._room.by_user[self._user_id]

    def grow(self, count: int) -> None:
        """Take more. Raises NoRoom."""
        room = self._room
        self._bytes += count
        room.held += count
        room.by_user[self._user_id] += count
        if self._bytes <= SMALL_BODY:
            return
        others = room.held > self._bytes and room.held > room.most
        own = room.by_user[self._user_id] > self._bytes and room.by_user[self._user_id] > room.most // 4
        if others or own:
            raise NoRoom("Too many large requests are being served.")


class TooLargeToDrain(PayloadTooLarge):
    """The rest of the body was not read either, so the connection cannot be used again."""


# --- bodies ---------------------------------------------------------------------------------------


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header by its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def require_json(scope: Scope) -> None:
    """Raise UnsupportedMediaType unless the body is declared as JSON."""
    media_type, _, _ = (header(scope, b"content-type") or "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType("The body must be application/json.")
    if (header(scope, b"content-encoding") or "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.")


async def read_body(scope: Scope, receive: Receive, limit: int, held: Held) -> bytes:
    """Return the body, at most `limit` bytes of it, which count as `held`.

    Raises PayloadTooLarge as soon as the limit is passed (or announced to be), RequestTimeout, NoRoom,
    ClientGone.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        expects = header(scope, b"expect") is not None  # then the client has not sent it yet
        raise await _too_large(receive, limit, 0 if expects or int(announced) > DRAIN_BYTES else DRAIN_BYTES)
    try:
        async with asyncio.timeout(BODY_SECONDS) as deadline:
            return await _whole(receive, limit, held, deadline)
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not arrive within {BODY_SECONDS:g} seconds, or slower than "
            f"{MIN_BYTES_PER_SECOND} bytes a second."
        ) from None


async def _whole(receive: Receive, limit: int, held: Held, deadline: asyncio.Timeout) -> bytes:
    body = bytearray()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        patience = min(BODY_SECONDS, GRACE_SECONDS + len(body) / MIN_BYTES_PER_SECOND)
        deadline.reschedule(began + patience)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        held.grow(len(piece))
        body += piece
        if len(body) > limit:
            raise await _too_large(receive, limit, DRAIN_BYTES if message.get("more_body") else None)
        if not message.get("more_body", False):
            return bytes(body)


async def _too_large(receive: Receive, limit: int, drain: int | None) -> PayloadTooLarge:
    """Throw the rest of the body away, within bounds: many clients read no answer before they have sent."""
    detail = f"The body is larger than {limit} bytes."
    errors = (FieldError("$", f"is larger than {limit} bytes"),)
    if drain is None or (drain and await _drained(receive, drain)):
        return PayloadTooLarge(detail, errors=errors)
    return TooLargeToDrain(detail, errors=errors)


async def _drained(receive: Receive, budget: int) -> bool:
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while budget > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if not message.get("more_body", False):
                    return True
                budget -= len(message.get("body", b""))
    except TimeoutError:
        pass
    return False


# --- JSON -----------------------------------------------------------------------------------------


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T], *, strict_text: bool = True) -> T:
    """Decode and validate a body.

    Raises MalformedRequest (not UTF-8, not JSON) or InvalidRequest, which names the field. With
    `strict_text`, control characters are refused in every string, known field or not.
    """
    _refuse_costly(body)
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(_at_index(error, body, decoder), "$") from None
    except UnicodeDecodeError:
        reason = "is not UTF-8"
        raise MalformedRequest("The body is not UTF-8.", errors=(FieldError("$", reason),)) from None
    except RecursionError:
        raise MalformedRequest("The body is nested too deeply.") from None
    except msgspec.DecodeError as error:
        _refuse_surrogates(body)
        raise MalformedRequest("The body is not valid JSON.", errors=(FieldError("$", str(error)),)) from None
    if strict_text and _SUSPECT.search(body):
        _refuse_forbidden(msgspec.json.decode(body))
    return decoded


def _refuse_costly(body: bytes) -> None:
    """Refuse a body whose numbers would keep everybody waiting while they are read."""
    if len(body) <= _SMALL:
        return
    shape = body.translate(_NUMERALS)
    extreme = next(islice(_EXTREME.finditer(shape), _MOST_EXTREME, None), None)
    if extreme is not None or shape.count(_LONG_NUMERAL) > _MOST_EXTREME:
        reason = "has too many numbers of extreme size"
        raise MalformedRequest("The body cannot be read.", errors=(FieldError("$", reason),))


def _refuse_surrogates(body: bytes) -> None:
    """Name the field if lone surrogates are why msgspec cannot decode; its own message misleads."""
    if b"\\u" not in body:
        return
    import json  # noqa: PLC0415 - only for this rare refusal

    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return
    _refuse_forbidden(decoded)


def _refuse_forbidden(decoded: Any) -> None:
    for place, text in _strings(decoded):
        if _FORBIDDEN.search(text):
            raise _bad_text(_path(place), text)


def _strings(value: Any) -> Iterator[tuple[_Place, str]]:
    """Yield every string of a decoded document with its place; keys count as strings of their object."""
    pending: list[tuple[Any, _Place]] = [(value, None)]
    while pending:
        item, at = pending.pop()
        if isinstance(item, str):
            yield at, item
        elif isinstance(item, list):
            pending.extend((each, (at, index)) for index, each in enumerate(item))
        elif isinstance(item, dict):
            for key, each in item.items():
                yield at, key
                pending.append((each, (at, key)))


def _path(place: _Place) -> str:
    """Spell a place out; done for the one that is refused, because paths of many items are huge together."""
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "$" + "".join(reversed(steps))


def _at_index(
    error: msgspec.ValidationError, body: bytes, decoder: msgspec.json.Decoder[Any]
) -> msgspec.ValidationError:
    """Put the index into a path such as `$.samples[...].value`: msgspec tells the field, not the item."""
    start, bracket, _ = str(error).partition("[...]")
    if not bracket or len(body) > _MOST_INDEXED:
        return error
    names = start.rpartition("`$")[2].split(".")[1:]
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # further on
        return error
    items = document
    for name in names:
        items = items.get(name) if isinstance(items, dict) else None
    if not isinstance(items, list):
        return error
    for index, item in enumerate(items[:_MOST_ITEMS]):
        # Each item alone, without what stands beside the list: the cost stays linear in the body.
        alone: Any = [item]
        for name in reversed(names):
            alone = {name: alone}
        try:
            decoder.decode(msgspec.json.encode(alone))
        except msgspec.ValidationError as found:
            if str(found) == str(error):
                return msgspec.ValidationError(str(error).replace("[...]", f"[{index}]", 1))
    return error


def _invalid(error: msgspec.ValidationError, root: str) -> InvalidRequest:
    match = _AT_PATH.match(str(error))
    reason, path = (match["reason"], match["path"]) if match else (str(error), "$")
    # An unknown or missing field is named in the text; the path is the object's.
    named = re.match(r"Object (?:contains unknown|missing required) field `([^`]*)`", reason)
    if named:
        path = f"{path}.{named[1]}"
        reason = "is not a field of this request" if "unknown" in reason else "is missing"
    field = _printable(root + path.removeprefix("$") if root == "$" else root + path.removeprefix("$."))
    return InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:200]


# --- queries and single values ----------------------------------------------------------------------


def decode_query(query_string: bytes, into: type[T]) -> T:
    """Read a query string into a struct; numbers and booleans are read from their text.

    Raises InvalidRequest, which names the parameter: unknown, given twice, or malformed.
    """
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except ValueError:
        reason = "is not percent-encoded UTF-8, or has too many parameters"
        raise MalformedRequest("The query cannot be read.", errors=(FieldError("query", reason),)) from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            field = _printable(f"query.{name}")
            raise InvalidRequest(f"{field}: is given twice", errors=(FieldError(field, "is given twice"),))
        given[name] = clean_text(f"query.{name}", value, 4096, empty=True)
    try:
        return msgspec.convert(given, into, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error, "query.") from None


def clean_text(field: str, value: str, max_length: int, *, empty: bool = False) -> str:
    """Return the text if it is text: no control characters, within `max_length` characters, not blank.

    Raises InvalidRequest naming `field`.
    """
    if not empty and not value.strip():
        raise InvalidRequest(f"{field}: is empty", errors=(FieldError(field, "is empty"),))
    if len(value) > max_length:
        reason = f"is longer than {max_length} characters"
        raise InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))
    if _FORBIDDEN.search(value):
        raise _bad_text(field, value)
    return value


def _bad_text(field: str, value: str) -> InvalidRequest:
    found = _FORBIDDEN.search(value)
    assert found is not None
    code = f"U+{ord(found[0]):04X}"
    kind = "the lone surrogate" if "\ud800" <= found[0] <= "\udfff" else "the control character"
    field = _printable(field)
    reason = f"contains {kind} {code}"
    return InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))
