"""The engine port: one model call as a stream of blocks.

An engine turns a `StepRequest` into batches of step events and ends with exactly one `StepDone`.
It knows nothing of sessions' durability, of readers or of Postgres; it never runs a tool.

The laws (`tests/engines/conformance.py` checks them for every engine):

- Order: `BlockStart(i)`, then deltas of block i, then `BlockStop(i)`; blocks do not interleave;
  indexes grow by one from 0. `StepDone` is the last event and comes once.
- The deltas of a text or thinking block concatenate to that block's text in `StepDone.content`; the
  deltas of a tool_use block concatenate to JSON that decodes to its `input` (`{}` if empty).
- `StepDone.content` holds the provider's content blocks verbatim (thinking and signatures included),
  fit to be sent back as history. Blocks that are not fit are left out although they were streamed: blank
  text, thinking or a tool_use that was cut, everything of a refusal. So it may be empty, and a tool_use is
  real only if its id is in it; every one that is there wants its tool_result, whatever the stop reason.
- Failure: an `EngineError` is raised; after it nothing more is yielded. A call is retried only while
  nothing of the answer has arrived.
- Cancellation: closing the iterator (`aclose`) or cancelling its task closes the upstream stream
  before control returns; nothing is left running.
- Idempotency: there is none upstream; asking twice may cost twice. The caller decides (`StepRequest.again`).
- Money: whenever control leaves the engine, `StepRequest.exposure` holds a bound of what the attempt costs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

StopReason: TypeAlias = Literal[
    "end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal"
]
BlockKind: TypeAlias = Literal["text", "thinking", "redacted_thinking", "tool_use", "other"]


class BlockStart(msgspec.Struct, frozen=True, gc=False):
    """A content block begins. `id` and `name` are those of a tool_use block, else None."""

    index: int
    kind: BlockKind
    id: str | None = None
    name: str | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of block `index`: visible text, thinking text or partial tool input JSON, by its kind."""

    index: int
    text: str


class BlockStop(msgspec.Struct, frozen=True, gc=False):
    """The block is complete."""

    index: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model call as the provider billed them; the parts do not overlap."""

    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_5m_input_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    output_tokens: int = 0


class StepDone(msgspec.Struct, frozen=True, kw_only=True):
    """The call has ended well. `content` is the assistant message's blocks, verbatim."""

    content: list[dict[str, Any]]
    stop_reason: StopReason
    usage: Usage
    model: str
    request_id: str | None = None
    cost_usd_micros: int = 0
    """Price of this call in millionths of a US dollar, by the price file."""


StepEvent: TypeAlias = BlockStart | Delta | BlockStop | StepDone


class ToolSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as the model sees it; `input_schema` is JSON Schema of an object."""

    name: str
    description: str
    input_schema: dict[str, Any]


class HistoryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One earlier message. `content` is a JSON array of content blocks, kept verbatim as stored."""

    role: Literal["user", "assistant", "system"]
    content: msgspec.Raw


class Exposure:
    """What a call that has not ended well may be billed; its engine keeps this up to date for its caller.

    `unbilled`: certainly nothing. `at_most_usd_micros`: a bound of its price, None while only `max_tokens`
    bounds it. Both are of the attempt under way: an attempt before it was told of by `StepRequest.again`.
    """

    __slots__ = ("at_most_usd_micros", "unbilled")

    def __init__(self) -> None:
        self.unbilled = True
        self.at_most_usd_micros: int | None = None


class StepRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one model call needs.

    `system` and `tools` are frozen per session, so that the provider's prompt cache and signed
    thinking stay valid.
    """

    model: str
    system: str
    tools: list[ToolSchema]
    messages: list[HistoryMessage]
    max_tokens: int
    thinking: Literal["off", "on"]
    session_id: str
    user_ref: str
    """An opaque stable reference to the user (never an id of ours, a name or an address)."""
    exposure: Exposure = msgspec.field(default_factory=Exposure)
    again: Callable[[], Awaitable[None]] | None = None
    """Awaited before an attempt that follows one which may be billed; what it raises ends the call."""


class Engine(Protocol):
    """A way to call a model."""

    name: str

    async def start(self) -> None:
        """Prepare what the first call would otherwise wait for. Safe to call again."""
        ...

    def stream(self, request: StepRequest) -> AsyncGenerator[list[StepEvent]]:
        """Make one model call and yield its events, one list per arrival from the network.

        Raises EngineError. See the module's laws.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; calls under way fail. Safe to call again."""
        ...
