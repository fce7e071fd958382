"""The Messages API's stream events, and the state that turns them into step events. No input or output.

Protocol: platform.claude.com/docs/en/build-with-claude/streaming. Events and delta types we do not know
are skipped, as that page asks of clients; what would break the port's laws is an error.

What `Answer.content()` keeps is what may be sent back as history:

- a text block of white space alone is dropped (the API refuses it);
- a thinking block that was cut before its signature is dropped (the API refuses it);
- a tool_use block that `max_tokens` cut in its input is dropped: half a call cannot be run. Every tool_use
  that is kept is whole, whatever the stop reason, and wants its tool_result;
- a refusal keeps nothing: the API asks to discard partial output.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import msgspec

from agent_backend.engines.base import (
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    StepEvent,
    StopReason,
    Usage,
)
from agent_backend.engines.limits import TransientError
from agent_backend.errors import EngineError

_STOP_REASONS: dict[str, StopReason] = {
    "end_turn": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "pause_turn": "pause_turn",
    "refusal": "refusal",
    # "Treat the response as truncated" (docs, "Stop reasons and fallback"): the same as max_tokens.
    "model_context_window_exceeded": "max_tokens",
}
_KINDS: dict[str, BlockKind] = {
    "text": "text",
    "thinking": "thinking",
    "redacted_thinking": "redacted_thinking",
    "tool_use": "tool_use",
}
_EVENTS = frozenset(
    {
        "content_block_delta",
        "content_block_start",
        "content_block_stop",
        "message_start",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    }
)
_DELTAS = frozenset(
    {"text_delta", "thinking_delta", "input_json_delta", "signature_delta", "citations_delta"}
)
_ERROR_TYPE = re.compile(r"[a-z_]{1,64}")


class _TextDelta(msgspec.Struct, tag="text_delta", gc=False):
    text: str


class _ThinkingDelta(msgspec.Struct, tag="thinking_delta", gc=False):
    thinking: str


class _InputJsonDelta(msgspec.Struct, tag="input_json_delta", gc=False):
    partial_json: str


class _SignatureDelta(msgspec.Struct, tag="signature_delta", gc=False):
    signature: str


class _CitationsDelta(msgspec.Struct, tag="citations_delta"):
    citation: dict[str, Any]


class _BlockDelta(msgspec.Struct, tag="content_block_delta", gc=False):
    index: int
    delta: _TextDelta | _ThinkingDelta | _InputJsonDelta | _SignatureDelta | _CitationsDelta


class _BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: dict[str, Any]


class _BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None


class _Message(msgspec.Struct):
    model: str
    usage: _Usage


class _MessageStart(msgspec.Struct, tag="message_start"):
    message: _Message


class _StopDelta(msgspec.Struct):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: _StopDelta
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _MessageStop(msgspec.Struct, tag="message_stop"):
    pass


class _Ping(msgspec.Struct, tag="ping"):
    pass


class _ErrorBody(msgspec.Struct):
    type: str = "unknown_error"


class _Error(msgspec.Struct, tag="error"):
    error: _ErrorBody


_Event: TypeAlias = (
    _BlockDelta | _BlockStart | _BlockStop | _MessageStart | _MessageDelta | _MessageStop | _Ping | _Error
)
_decode = msgspec.json.Decoder(_Event).decode


class _DeltaType(msgspec.Struct):
    type: str = ""


class _AnyEvent(msgspec.Struct):
    """Enough of an event to see whether it is one we should have understood."""

    type: str
    delta: _DeltaType = msgspec.field(default_factory=_DeltaType)


_decode_any = msgspec.json.Decoder(_AnyEvent).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class _Block:
    """A content block as it grows."""

    __slots__ = ("content", "index", "json", "kind", "signature", "state", "text")

    def __init__(self, index: int, content: dict[str, Any]) -> None:
        self.index = index
        self.content = content
        self.kind: BlockKind = _KINDS.get(content.get("type", ""), "other")
        self.text: list[str] = []
        self.json: list[str] = []
        self.signature: list[str] = []
        self.state: Literal["open", "whole", "broken"] = "open"

    def close(self) -> None:
        """Put the deltas into `content`."""
        self.state = "whole"
        if self.text:
            key = "thinking" if self.kind == "thinking" else "text"
            self.content[key] = "".join(self.text)
        if self.signature:
            self.content["signature"] = "".join(self.signature)
        if "input" in self.content:
            self._close_input()

    def _close_input(self) -> None:
        text = "".join(self.json)
        if not text:
            return
        try:
            self.content["input"] = _decode_object(text)
        except msgspec.DecodeError:
            self.state = "broken"

    @property
    def fit_for_history(self) -> bool:
        if self.kind == "text":
            return bool(str(self.content.get("text", "")).strip())
        if self.kind == "thinking":
            return bool(self.content.get("signature"))
        return self.state == "whole"


class Answer:
    """One streamed message: feed it the events' payloads, take the step events."""

    def __init__(self) -> None:
        self.started = False
        self.finished = False
        self.failure: EngineError | None = None
        self.model = ""
        self.stop_reason: StopReason | None = None
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        self._usage: dict[str, int] = {}
        self._split: _CacheCreation | None = None

    def take(self, payloads: list[bytes]) -> list[StepEvent]:
        """Advance by the payloads of one network read; return their step events.

        An `error` event, or what is not the protocol, ends it: `failure` is set, and the events before it
        are returned, so that nothing the user could see is lost.
        """
        out: list[StepEvent] = []
        try:
            for payload in payloads:
                self._take(payload, out)
        except EngineError as error:
            self.failure = error
        return out

    def _take(self, payload: bytes, out: list[StepEvent]) -> None:
        try:
            event = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if self._skippable(payload):
                return
            raise self._malformed("an event that cannot be read") from None
        if type(event) is _BlockDelta:
            self._on_delta(event, out)
        else:
            self._on_event(event, out)

    def _on_delta(self, event: _BlockDelta, out: list[StepEvent]) -> None:
        block = self._open
        if block is None or block.index != event.index:
            raise self._malformed("a delta outside its block")
        delta = event.delta
        if type(delta) is _TextDelta:
            block.text.append(delta.text)
            if block.kind == "text":
                out.append(Delta(event.index, delta.text))
        elif type(delta) is _ThinkingDelta:
            block.text.append(delta.thinking)
            if block.kind == "thinking":
                out.append(Delta(event.index, delta.thinking))
        elif type(delta) is _InputJsonDelta:
            block.json.append(delta.partial_json)
            if block.kind == "tool_use":
                out.append(Delta(event.index, delta.partial_json))
        elif type(delta) is _SignatureDelta:
            block.signature.append(delta.signature)
        elif type(delta) is _CitationsDelta:
            citations: list[Any] = block.content.get("citations") or []
            block.content["citations"] = [*citations, delta.citation]

    def _on_event(self, event: _Event, out: list[StepEvent]) -> None:
        if isinstance(event, _BlockStart):
            self._on_block_start(event, out)
        elif isinstance(event, _BlockStop):
            self._on_block_stop(event, out)
        elif isinstance(event, _MessageStart):
            self.started = True
            self.model = event.message.model
            self._count(event.message.usage)
        elif isinstance(event, _MessageDelta):
            self._count(event.usage)
            self._on_stop_reason(event.delta.stop_reason)
        elif isinstance(event, _MessageStop):
            self._on_message_stop()
        elif isinstance(event, _Error):
            raise failure_of(event.error.type, started=self.started)

    def _on_block_start(self, event: _BlockStart, out: list[StepEvent]) -> None:
        if not self.started or self._open is not None or event.index != len(self._blocks):
            raise self._malformed("a block out of order")
        block = _Block(event.index, event.content_block)
        self._blocks.append(block)
        self._open = block
        is_call = block.kind == "tool_use"
        content = block.content
        if is_call and not (isinstance(content.get("id"), str) and isinstance(content.get("name"), str)):
            raise self._malformed("a tool_use block without id or name")
        out.append(
            BlockStart(
                event.index,
                block.kind,
                content["id"] if is_call else None,
                content["name"] if is_call else None,
            )
        )
        self._take_initial(block, out)

    def _take_initial(self, block: _Block, out: list[StepEvent]) -> None:
        """Treat what a block already holds at its start as its first delta."""
        if block.kind in ("text", "thinking"):
            text = block.content.get(block.kind)
            if isinstance(text, str) and text:
                block.text.append(text)
                out.append(Delta(block.index, text))
        elif block.kind == "tool_use" and block.content.get("input"):
            text = msgspec.json.encode(block.content["input"]).decode()
            block.json.append(text)
            out.append(Delta(block.index, text))

    def _on_block_stop(self, event: _BlockStop, out: list[StepEvent]) -> None:
        block = self._open
        if block is None or block.index != event.index:
            raise self._malformed("the end of a block that is not open")
        block.close()
        self._open = None
        out.append(BlockStop(event.index))

    def _on_stop_reason(self, reason: str | None) -> None:
        if reason is None:
            return
        self.stop_reason = _STOP_REASONS.get(reason)
        if self.stop_reason is None:
            raise self._malformed("a stop reason we do not know")

    def _on_message_stop(self) -> None:
        if self.stop_reason is None or self._open is not None:
            raise self._malformed("the end of a message that is not complete")
        if any(block.state == "broken" for block in self._blocks) and self.stop_reason not in (
            "max_tokens",
            "refusal",
        ):
            raise EngineError(
                "model_output_invalid",
                "the model wrote tool input that is not a JSON object",
                retryable=True,
                started=True,
            )
        self.finished = True

    def content(self) -> list[dict[str, Any]]:
        """Return the blocks fit to be sent back as history, verbatim (see the module)."""
        if self.stop_reason == "refusal":
            return []
        kept = [block for block in self._blocks if block.fit_for_history]
        # A call cut before its first byte of input looks like a call without arguments.
        if self.stop_reason == "max_tokens" and kept and kept[-1] is self._blocks[-1]:
            last = kept[-1]
            if last.kind == "tool_use" and not any(last.json):
                kept.pop()
        return [block.content for block in kept]

    def usage(self) -> Usage:
        """Return the tokens as billed; cache writes the API did not split count as the dearer 1 h."""
        split = self._split or _CacheCreation()
        written = self._usage.get("cache_creation_input_tokens", 0)
        unsplit = max(0, written - split.ephemeral_5m_input_tokens - split.ephemeral_1h_input_tokens)
        return Usage(
            input_tokens=self._usage.get("input_tokens", 0),
            cache_read_input_tokens=self._usage.get("cache_read_input_tokens", 0),
            cache_write_5m_input_tokens=split.ephemeral_5m_input_tokens,
            cache_write_1h_input_tokens=split.ephemeral_1h_input_tokens + unsplit,
            output_tokens=self._usage.get("output_tokens", 0),
        )

    def usage_at_most(self, max_tokens: int, unseen: int) -> Usage:
        """Return a bound of what a message that was broken off is billed as; its beginning must be here.

        The prompt is known since `message_start`. Of the answer a token has at least one byte, and at most
        `unseen` tokens had not arrived. Thinking is shown in a summary, so with it the bound is `max_tokens`.
        """
        usage = self.usage()
        if self.stop_reason is not None:
            return usage
        shown = all(block.kind in ("text", "tool_use") for block in self._blocks)
        pieces = (piece for block in self._blocks for piece in (*block.text, *block.json))
        arrived = sum(len(piece.encode("utf-8", "surrogatepass")) for piece in pieces)
        bound = min(max_tokens, arrived + unseen) if shown else max_tokens
        return msgspec.structs.replace(usage, output_tokens=max(usage.output_tokens, bound))

    def _count(self, usage: _Usage) -> None:
        """Take counts over: those of `message_delta` are cumulative and replace earlier ones."""
        for name in (
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ):
            value: int | None = getattr(usage, name)
            if value is not None:
                self._usage[name] = value
        if usage.cache_creation is not None:
            self._split = usage.cache_creation

    def _skippable(self, payload: bytes) -> bool:
        """Tell an event of a newer API, to be skipped, from a broken one of a kind we know."""
        try:
            event = _decode_any(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if event.type == "content_block_delta":
            return bool(event.delta.type) and event.delta.type not in _DELTAS
        return event.type not in _EVENTS

    def _malformed(self, what: str) -> EngineError:
        return EngineError("provider_protocol", f"got {what}", retryable=True, started=self.started)


_FAILURES: dict[str, tuple[str, bool]] = {
    "overloaded_error": ("provider_overloaded", True),
    "rate_limit_error": ("provider_rate_limited", True),
    "api_error": ("provider_unavailable", True),
    "timeout_error": ("provider_unavailable", True),
    "invalid_request_error": ("provider_rejected", False),
    "authentication_error": ("provider_auth", False),
    "billing_error": ("provider_billing", False),
    "permission_error": ("provider_auth", False),
    "not_found_error": ("provider_rejected", False),
    "request_too_large": ("provider_too_large", False),
}


def failure_of(error_type: str, *, started: bool) -> EngineError:
    """Return the error for an `error` event of this type. The event's message is not kept: it may quote."""
    code, retryable = _FAILURES.get(error_type, ("provider_error", True))
    name = error_type if _ERROR_TYPE.fullmatch(error_type) else "unknown_error"
    detail = f"the provider ended the answer with {name}"
    if not started and code in {"provider_overloaded", "provider_unavailable"}:
        return TransientError(code, detail)
    return EngineError(code, detail, retryable=retryable, started=started)
