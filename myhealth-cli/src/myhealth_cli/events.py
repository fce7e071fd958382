"""The AG-UI 1.0 events a chat understands; what it does not know becomes Unknown and is passed over.

Field names are those of the AG-UI 1.0 specification (package ag-ui-protocol), camel case on the wire.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class _Event(msgspec.Struct, kw_only=True, rename="camel", tag_field="type"):
    """Base of all events."""


class InputMessage(msgspec.Struct, frozen=True):
    """A message a run was started with."""

    id: str = ""
    role: str = ""


class RunInput(msgspec.Struct, frozen=True):
    """What a run was started with."""

    messages: list[InputMessage] = []


class RunStarted(_Event, tag="RUN_STARTED"):
    """A turn begins, or a reader is brought up to date by what follows."""

    run_id: str
    input: RunInput | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended: success, cancelled, interrupt."""

    type: str = "success"


class RunFinished(_Event, tag="RUN_FINISHED"):
    """A turn has ended."""

    run_id: str
    outcome: Outcome | None = None


class RunError(_Event, tag="RUN_ERROR"):
    """A turn has failed."""

    message: str
    code: str | None = None


class TextStart(_Event, tag="TEXT_MESSAGE_START"):
    """A visible message begins."""

    message_id: str


class TextContent(_Event, tag="TEXT_MESSAGE_CONTENT"):
    """A piece of a visible message."""

    message_id: str
    delta: str


class TextEnd(_Event, tag="TEXT_MESSAGE_END"):
    """A visible message is complete."""

    message_id: str


class ReasoningStart(_Event, tag="REASONING_MESSAGE_START"):
    """The model begins to think aloud."""

    message_id: str


class ReasoningContent(_Event, tag="REASONING_MESSAGE_CONTENT"):
    """A piece of a thought."""

    message_id: str
    delta: str


class ReasoningEnd(_Event, tag="REASONING_MESSAGE_END"):
    """The thought is complete."""

    message_id: str


class ToolCallStart(_Event, tag="TOOL_CALL_START"):
    """The model begins to write a tool call."""

    tool_call_id: str
    tool_call_name: str


class ToolCallArgs(_Event, tag="TOOL_CALL_ARGS"):
    """A piece of a call's arguments."""

    tool_call_id: str
    delta: str


class ToolCallEnd(_Event, tag="TOOL_CALL_END"):
    """The call is complete; the tool starts."""

    tool_call_id: str


class ToolCallResult(_Event, tag="TOOL_CALL_RESULT"):
    """What the tool returned."""

    tool_call_id: str
    content: str


class Function(msgspec.Struct, frozen=True):
    """The name and the arguments (JSON text) of a call."""

    name: str
    arguments: str = ""


class Call(msgspec.Struct, frozen=True):
    """A tool call inside a message."""

    id: str
    function: Function


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message of a snapshot, of any role."""

    id: str
    role: str
    content: str | None = None
    tool_calls: list[Call] = []
    tool_call_id: str | None = None


class MessagesSnapshot(_Event, tag="MESSAGES_SNAPSHOT"):
    """The conversation as it is settled; replaces what was put together before."""

    messages: list[Message]


class Custom(_Event, tag="CUSTOM"):
    """What AG-UI has no event for: `tool_call_pending` (the turn waits), `notice` (a fixed text follows)."""

    name: str


class Unknown(msgspec.Struct, frozen=True):
    """An event of a kind we do not show."""

    type: str = ""


Known: TypeAlias = (
    RunStarted
    | RunFinished
    | RunError
    | TextStart
    | TextContent
    | TextEnd
    | ReasoningStart
    | ReasoningContent
    | ReasoningEnd
    | ToolCallStart
    | ToolCallArgs
    | ToolCallEnd
    | ToolCallResult
    | MessagesSnapshot
    | Custom
)
Event: TypeAlias = Known | Unknown

_known = msgspec.json.Decoder(Known)
_unknown = msgspec.json.Decoder(Unknown)


def decode(data: bytes) -> Event:
    """Read an event. Raises msgspec.DecodeError when it is no JSON object at all."""
    try:
        return _known.decode(data)
    except msgspec.ValidationError:
        return _unknown.decode(data)


def may_wait(event: Event) -> bool:
    """Say whether after this event the turn may wait for the person: ask the server what for."""
    return isinstance(event, MessagesSnapshot) or (
        isinstance(event, Custom) and event.name == "tool_call_pending"
    )


def ends_run(event: Event) -> bool:
    """Say whether a turn ends with this event."""
    return isinstance(event, (RunFinished, RunError))
