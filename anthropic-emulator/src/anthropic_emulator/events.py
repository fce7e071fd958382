"""Turns a reply into the message and into the bytes of its event stream.

Order and shape of events: "Streaming messages" of the API guide and `types/raw_*_event.py` of
anthropic-sdk-python.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from anthropic_emulator.cache import InputUsage
from anthropic_emulator.ids import Ids
from anthropic_emulator.reply import Call, Part, Reply, ServerCall, Text, Whole
from anthropic_emulator.request import MessagesRequest
from anthropic_emulator.tokens import text_tokens

_PIECES: Final = re.compile(r"\S+\s*|\s+")
_JSON_PIECE: Final = 12
_encode: Final = msgspec.json.encode


class Block(msgspec.Struct, frozen=True):
    """One content block: how it starts, its deltas, its `signature`, and how it looks when whole."""

    start: dict[str, object]
    kind: str
    """Type of its deltas; empty for a block that has none."""
    deltas: Sequence[str]
    whole: dict[str, object]
    signature: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A finished message, cut to `max_tokens` and at stop sequences."""

    id: str
    model: str
    blocks: Sequence[Block]
    stop_reason: str
    stop_sequence: str | None
    input: InputUsage
    output_tokens: int


def compose(request: MessagesRequest, reply: Reply, usage: InputUsage, signature: str, ids: Ids) -> Message:
    """Make the message. `signature` is that of the reply's thinking text."""
    budget = _Budget(request)
    built: list[Block] = []
    if reply.thinking is not None and budget.open:
        built.append(_thinking(reply.thinking, signature, budget, omitted=request.thinking.omitted))
    for part in reply.parts:
        if not budget.open:
            break
        built.append(_part(part, budget, ids))
    stop = "max_tokens" if budget.spent else reply.stop
    if budget.sequence is not None:
        stop = "stop_sequence"
    return Message(
        id=ids.new("msg_"),
        model=request.model.id,
        blocks=built,
        stop_reason=stop,
        stop_sequence=budget.sequence,
        input=usage,
        output_tokens=max(1, budget.used) if request.max_tokens else 0,
    )


class _Budget:
    """Counts deltas against `max_tokens`, and looks for stop sequences."""

    def __init__(self, request: MessagesRequest) -> None:
        self._limit = request.max_tokens
        self._stops = request.stop_sequences
        self.used = 0
        self.spent = request.max_tokens == 0
        self.sequence: str | None = None

    @property
    def open(self) -> bool:
        return not self.spent and self.sequence is None

    def take(self, text: str, deltas: Sequence[str] | None) -> Sequence[str]:
        """Give the deltas that fit. Deltas that are given cost one token each, others by their bytes."""
        pieces = deltas if deltas is not None else _PIECES.findall(text)
        if deltas is not None and self.used + len(pieces) <= self._limit:
            self.used += len(pieces)
            return pieces
        fitting: list[str] = []
        for piece in pieces:
            cost = 1 if deltas is not None else text_tokens(piece)
            if self.used + cost > self._limit:
                self.spent = True
                break
            self.used += cost
            fitting.append(piece)
        return fitting

    def until_stop(self, text: str, deltas: Sequence[str] | None) -> tuple[str, Sequence[str] | None]:
        """Cut `text` at the first stop sequence."""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not found:
            return text, deltas
        at, self.sequence = min(found)
        return text[:at], None


def _thinking(thought: Text, signature: str, budget: _Budget, *, omitted: bool) -> Block:
    fitting = budget.take(thought.text, thought.deltas)
    shown = [] if omitted else fitting
    text = "".join(shown)
    return Block(
        {"type": "thinking", "thinking": "", "signature": ""},
        "thinking_delta",
        shown,
        {"type": "thinking", "thinking": text, "signature": signature},
        signature,
    )


def _part(part: Part, budget: _Budget, ids: Ids) -> Block:
    match part:
        case Text():
            text, deltas = budget.until_stop(part.text, part.deltas)
            fitting = budget.take(text, deltas)
            whole: dict[str, object] = {"type": "text", "text": "".join(fitting)}
            return Block({"type": "text", "text": ""}, "text_delta", fitting, whole)
        case Call():
            return _call("tool_use", ids.new("toolu_"), part, budget)
        case ServerCall():
            return _call("server_tool_use", ids.new("srvtoolu_"), part, budget)
        case Whole():
            return Block(dict(part.block), "", (), dict(part.block))


def _call(kind: str, ident: str, call: Call | ServerCall, budget: _Budget) -> Block:
    text = _encode(call.arguments).decode()
    pieces = [text[n : n + _JSON_PIECE] for n in range(0, len(text), _JSON_PIECE)]
    fitting: list[str] = []
    for piece in pieces:
        fitting += budget.take(piece, (piece,))
        if budget.spent:
            break
    start: dict[str, object] = {"type": kind, "id": ident, "name": call.name, "input": {}}
    whole = {**start, "input": call.arguments if len(fitting) == len(pieces) else {}}
    return Block(start, "input_json_delta", fitting, whole)


def usage(message: Message) -> dict[str, object]:
    """`usage` of the whole message."""
    return {**_input_usage(message.input), "output_tokens": message.output_tokens, "service_tier": "standard"}


def _input_usage(paid: InputUsage) -> dict[str, object]:
    return {
        "input_tokens": paid.uncached,
        "cache_creation_input_tokens": paid.write_5m + paid.write_1h,
        "cache_read_input_tokens": paid.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": paid.write_5m,
            "ephemeral_1h_input_tokens": paid.write_1h,
        },
    }


def _stop_details(message: Message) -> dict[str, object] | None:
    if message.stop_reason != "refusal":
        return None
    return {"type": "refusal", "category": None, "explanation": "[simulation] This refusal was asked for."}


def document(message: Message) -> bytes:
    """JSON of the message, for requests that do not stream."""
    return _encode(
        {
            **_envelope(message),
            "content": [block.whole for block in message.blocks],
            "stop_reason": message.stop_reason,
            "stop_sequence": message.stop_sequence,
            "stop_details": _stop_details(message),
            "usage": usage(message),
        }
    )


def _envelope(message: Message) -> dict[str, object]:
    return {"id": message.id, "type": "message", "role": "assistant", "model": message.model}


def frame(event: str, data: bytes) -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def _json_frame(event: str, **fields: object) -> bytes:
    return frame(event, _encode({"type": event, **fields}))


PING: Final = _json_frame("ping")
_DELTA_KEYS: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "signature_delta": "signature",
}


@lru_cache(maxsize=8192)
def delta_frame(index: int, kind: str, piece: str) -> bytes:
    """One `content_block_delta`; cached, because scripted streams repeat their words."""
    delta = {"type": kind, _DELTA_KEYS[kind]: piece}
    return _json_frame("content_block_delta", index=index, delta=delta)


def opening(message: Message) -> bytes:
    """`message_start`: input usage is known, output has just begun."""
    started = {
        **_envelope(message),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**_input_usage(message.input), "output_tokens": 1, "service_tier": "standard"},
    }
    return _json_frame("message_start", message=started)


def beats(message: Message) -> Iterator[bytes]:
    """Everything after `message_start`, cut where time passes: each beat but the last ends in one delta."""
    pending = bytearray()
    pinged = False
    for index, block in enumerate(message.blocks):
        pending += _json_frame("content_block_start", index=index, content_block=block.start)
        if not pinged:
            pending += PING
            pinged = True
        if block.kind == "input_json_delta":
            pending += delta_frame(index, block.kind, "")
        for piece in block.deltas:
            pending += delta_frame(index, block.kind, piece)
            yield bytes(pending)
            pending.clear()
        if block.signature is not None:
            pending += _json_frame(
                "content_block_delta",
                index=index,
                delta={"type": "signature_delta", "signature": block.signature},
            )
        pending += _json_frame("content_block_stop", index=index)
    yield bytes(pending) + _closing(message)


def _closing(message: Message) -> bytes:
    delta: dict[str, object] = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
    details = _stop_details(message)
    if details is not None:
        delta["stop_details"] = details
    spent = {**_input_usage(message.input), "output_tokens": message.output_tokens}
    del spent["cache_creation"]
    return _json_frame("message_delta", delta=delta, usage=spent) + _json_frame("message_stop")
