"""What the emulated model answers, before it is cut to `max_tokens` and turned into events."""

from collections.abc import Mapping, Sequence

import msgspec

from anthropic_emulator.tokens import JsonObject


class Text(msgspec.Struct, frozen=True):
    """A text block. `deltas`, where given, are its pieces and count one token each."""

    text: str
    deltas: Sequence[str] | None = None


class Call(msgspec.Struct, frozen=True):
    """A tool_use block."""

    name: str
    arguments: Mapping[str, object]


class Whole(msgspec.Struct, frozen=True):
    """A block sent complete in its `content_block_start`, such as a server tool's result."""

    block: JsonObject


class ServerCall(msgspec.Struct, frozen=True):
    """A server_tool_use block: what a `pause_turn` pauses at."""

    name: str
    arguments: Mapping[str, object]


Part = Text | Call | Whole | ServerCall


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Thinking (None: no thinking block), the blocks after it, and why the model stops there."""

    parts: Sequence[Part]
    stop: str
    thinking: Text | None = None
    obeyed: Sequence[str] = ()
    """What a gullible model does because a text told it to."""
