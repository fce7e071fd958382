"""A validated request, in one shape: content is always a list of blocks."""

from collections.abc import Sequence

import msgspec

from anthropic_emulator.models import Model
from anthropic_emulator.tokens import JsonObject


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """How the model may use tools: `kind` is auto, any, tool or none; `name` only with tool."""

    kind: str = "auto"
    name: str | None = None
    parallel: bool = True


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """The effective thinking mode: adaptive, between_tools or disabled."""

    kind: str
    omitted: bool = False
    """`display: omitted`: the block carries its signature but no text."""

    @property
    def on(self) -> bool:
        """Whether any thinking can happen."""
        return self.kind != "disabled"


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a `POST /v1/messages` body that passed validation."""

    model: Model
    max_tokens: int
    messages: Sequence[JsonObject]
    """`{"role", "content": [block, ...]}`, in the order and number they were sent."""
    system: Sequence[JsonObject]
    tools: Sequence[JsonObject]
    tool_choice: ToolChoice
    thinking: Thinking
    stop_sequences: Sequence[str]
    stream: bool
    cache_control: JsonObject | None
    """Top-level automatic caching."""


def blocks(message: JsonObject) -> Sequence[JsonObject]:
    """Content blocks of a normalised message."""
    content = message["content"]
    assert isinstance(content, list)
    return content


def text_of(message: JsonObject) -> str:
    """Text blocks of a message, joined by line ends; empty when it has none."""
    return "\n".join(str(block["text"]) for block in blocks(message) if block["type"] == "text")
