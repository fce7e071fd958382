"""Events as AG-UI 1.0 defines them, their place in the log, and how they are written; pure.

An event is kept as the UTF-8 JSON of an AG-UI object *without* its metadata: its cursor is known from its
place in the log and is added by `positioned` when it goes out. Field names and the legal order of events
are those of the AG-UI 1.0 specification (`spec/1.0/schema.json`, package ag-ui-protocol).
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

_encoder = msgspec.json.Encoder()
encode = _encoder.encode

_CURSOR = re.compile(r"(\d{1,18})-(\d{1,9})", re.ASCII)


class Cursor(NamedTuple):
    """A position in a session's log: epoch and number in it; compares in log order."""

    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read the form `str()` gives. Raises ValueError on anything else."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValueError("a cursor has the form '<epoch>-<number>'")
        return cls(int(match[1]), int(match[2]))


START: Final = Cursor(0, 0)

MARKER_SPAN: Final = 1024
"""Positions a takeover marker covers, so that each event it is read as has a cursor of its own."""


class _Event(msgspec.Struct, kw_only=True, rename="camel", tag_field="type", omit_defaults=True):
    """Base of all events; `positioned` adds their metadata."""


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The user's message inside RUN_STARTED, for readers who did not send it."""

    id: str
    content: str
    role: Literal["user"] = "user"


class RunInput(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the run was started with."""

    thread_id: str
    run_id: str
    messages: list[InputMessage]


class RunStarted(_Event, tag="RUN_STARTED"):
    """A turn begins; again as first event when a reader is brought up to date by a snapshot."""

    thread_id: str
    run_id: str
    timestamp: int | None = None
    input: RunInput | None = None


class SuccessOutcome(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, tag_field="type", tag="success"
):
    """The turn completed.

    `pending_tool_call_ids`: only the request of an AG-UI client ends; its next one answers these calls.
    """

    pending_tool_call_ids: list[str] | None = None


class Interrupt(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A call of an AG-UI client's run that waits for the user's yes."""

    id: str
    reason: str
    tool_call_id: str
    response_schema: dict[str, Any]


class InterruptOutcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="interrupt"):
    """The run of an AG-UI client ends here; its next one says yes or no in `resume`."""

    interrupts: list[Interrupt]


class CancelledOutcome(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """The turn was stopped by a request."""


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Tokens of the turn in AG-UI's accounting: cached counts are parts of inputTokens, not additions."""

    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_input_tokens: int = 0


class RunFinished(_Event, tag="RUN_FINISHED"):
    """The turn has ended well, or by request."""

    thread_id: str
    run_id: str
    outcome: SuccessOutcome | InterruptOutcome | CancelledOutcome
    timestamp: int | None = None
    result: dict[str, str] | None = None
    usage: list[TokenUsage] | None = None


class RunError(_Event, tag="RUN_ERROR"):
    """The turn has failed; `code` is stable, `message` is for people."""

    message: str
    code: str
    timestamp: int | None = None


class TextMessageStart(_Event, tag="TEXT_MESSAGE_START", omit_defaults=False):
    """A visible message begins."""

    message_id: str
    role: Literal["assistant"] = "assistant"


class TextMessageContent(_Event, tag="TEXT_MESSAGE_CONTENT"):
    """A piece of a visible message."""

    message_id: str
    delta: str


class TextMessageEnd(_Event, tag="TEXT_MESSAGE_END"):
    """The message is complete and settled."""

    message_id: str


class ReasoningStart(_Event, tag="REASONING_START"):
    """A span of reasoning begins."""

    message_id: str


class ReasoningMessageStart(_Event, tag="REASONING_MESSAGE_START", omit_defaults=False):
    """A reasoning message begins. Its role has one value, and the schema requires it all the same."""

    message_id: str
    role: Literal["reasoning"] = "reasoning"


class ReasoningMessageContent(_Event, tag="REASONING_MESSAGE_CONTENT"):
    """A piece of reasoning."""

    message_id: str
    delta: str


class ReasoningMessageEnd(_Event, tag="REASONING_MESSAGE_END"):
    """The reasoning message is complete and settled."""

    message_id: str


class ReasoningEnd(_Event, tag="REASONING_END"):
    """The span of reasoning ends."""

    message_id: str


class ToolCallStart(_Event, tag="TOOL_CALL_START"):
    """The model begins to write a tool call."""

    tool_call_id: str
    tool_call_name: str
    parent_message_id: str | None = None


class ToolCallArgs(_Event, tag="TOOL_CALL_ARGS"):
    """A piece of the call's arguments (JSON text)."""

    tool_call_id: str
    delta: str


class ToolCallEnd(_Event, tag="TOOL_CALL_END"):
    """The call is complete and settled; only now the tool starts."""

    tool_call_id: str


class ToolCallResult(_Event, tag="TOOL_CALL_RESULT", omit_defaults=False):
    """What the tool returned, settled."""

    message_id: str
    tool_call_id: str
    content: str
    role: Literal["tool"] = "tool"


class PendingToolCall(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A call that waits for somebody outside: a device that runs it, or the user's yes.

    `expires_at` is told by the clock of the machine that asks; `GET .../tool-calls` tells it exactly.
    """

    tool_call_id: str
    tool_name: str
    kind: Literal["device", "approval"]
    effects: bool
    expires_at: dt.datetime


class Custom(_Event, tag="CUSTOM"):
    """What AG-UI has no event for.

    `tool_call_pending`: the turn waits for an answer; after it the turn goes on in the same run, with
    TOOL_CALL_RESULT. `notice`: the message that follows is a fixed text of ours, not the model's; the value
    says why, such as `safety.cardiac` or `budget.user_day`.
    """

    name: Literal["tool_call_pending", "notice"]
    value: PendingToolCall | str


class MessagesSnapshot(_Event, tag="MESSAGES_SNAPSHOT"):
    """The settled messages of the conversation; replaces what a client had put together."""

    messages: list[dict[str, Any]]


Event: TypeAlias = (
    RunStarted
    | RunFinished
    | RunError
    | TextMessageStart
    | TextMessageContent
    | TextMessageEnd
    | ReasoningStart
    | ReasoningMessageStart
    | ReasoningMessageContent
    | ReasoningMessageEnd
    | ReasoningEnd
    | ToolCallStart
    | ToolCallArgs
    | ToolCallEnd
    | ToolCallResult
    | Custom
    | MessagesSnapshot
)


class _Pending(msgspec.Struct):
    value: PendingToolCall


_pending_decoder = msgspec.json.Decoder(_Pending)


def delta_prefix(kind: Literal["text", "thinking", "tool_use"], entity_id: str) -> bytes:
    """Return the bytes of a content event up to its delta; the hot path appends `encode(text) + b"}"`."""
    quoted = encode(entity_id)
    match kind:
        case "text":
            return b'{"type":"TEXT_MESSAGE_CONTENT","messageId":' + quoted + b',"delta":'
        case "thinking":
            return b'{"type":"REASONING_MESSAGE_CONTENT","messageId":' + quoted + b',"delta":'
        case "tool_use":
            return b'{"type":"TOOL_CALL_ARGS","toolCallId":' + quoted + b',"delta":'


def positioned(event: bytes, thread_id: str, cursor: str | None) -> bytes:
    """Return the event as it goes out: with metadata.threadId, and metadata.cursor if it has a place."""
    place = f',"cursor":"{cursor}"' if cursor is not None else ""
    return event[:-1] + f',"metadata":{{"threadId":"{thread_id}"{place}}}}}'.encode()


class _Opening(msgspec.Struct, rename="camel"):
    type: str
    message_id: str = ""
    tool_call_id: str = ""


_opening_decoder = msgspec.json.Decoder(_Opening)

_CLOSED_BY: Final = {
    "TEXT_MESSAGE_END": "TEXT_MESSAGE_START",
    "REASONING_MESSAGE_END": "REASONING_MESSAGE_START",
    "REASONING_END": "REASONING_START",
    "TOOL_CALL_END": "TOOL_CALL_START",
}


def closings(events: list[bytes]) -> list[bytes]:
    """Return the events that close whatever `events` left open, innermost first.

    `events` are those after the last settled position, where nothing is open.
    """
    still_open: dict[tuple[str, str], None] = {}
    for raw in events:
        event = _opening_decoder.decode(raw)
        entity = event.tool_call_id if event.type.startswith("TOOL_CALL") else event.message_id
        if event.type in (
            "TEXT_MESSAGE_START",
            "REASONING_START",
            "REASONING_MESSAGE_START",
            "TOOL_CALL_START",
        ):
            still_open[event.type, entity] = None
        elif (opener := _CLOSED_BY.get(event.type)) is not None:
            still_open.pop((opener, entity), None)
    return [_closing(kind, entity) for kind, entity in reversed(still_open)]


def _closing(kind: str, entity: str) -> bytes:
    match kind:
        case "TEXT_MESSAGE_START":
            return encode(TextMessageEnd(message_id=entity))
        case "REASONING_MESSAGE_START":
            return encode(ReasoningMessageEnd(message_id=entity))
        case "REASONING_START":
            return encode(ReasoningEnd(message_id=entity))
        case _:
            return encode(ToolCallEnd(tool_call_id=entity))


def ends_run(event: bytes) -> bool:
    """Say whether the event is RUN_FINISHED or RUN_ERROR."""
    return event.startswith((b'{"type":"RUN_FINISHED"', b'{"type":"RUN_ERROR"'))


def pending_call(event: bytes) -> PendingToolCall | None:
    """Return the call that a `tool_call_pending` event tells of; None for any other event."""
    if not event.startswith(b'{"type":"CUSTOM","name":"tool_call_pending"'):
        return None
    return _pending_decoder.decode(event).value


def of_run(event: bytes, run_id: str) -> bytes:
    """Return a RUN_FINISHED under another run's id."""
    return encode({**msgspec.json.decode(event), "runId": run_id})


def starts_run(event: bytes, run_id: str) -> bool:
    """Say whether the event is this run's RUN_STARTED."""
    # Within the fields before `input`: a user's text may quote any id.
    return event.startswith(b'{"type":"RUN_STARTED"') and b'"runId":"%b"' % run_id.encode() in event[:160]
