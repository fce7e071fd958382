"""One model call as AG-UI events: what an engine yields becomes the bytes readers get.

Only STARTs and deltas come out while the call runs; the ENDs come from `closings` once the step is settled.
Ids follow `transcript.to_agui`, so that stream and snapshot name the same things alike.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from agent_backend import events as agui
from agent_backend.engines.base import BlockStart, Delta, StepDone, StepEvent
from agent_backend.transcript import block_id


class _Block:
    """A content block that is being written."""

    __slots__ = ("announced", "entity_id", "kind", "name", "parent", "prefix", "text")

    def __init__(self, kind: Literal["text", "thinking", "tool_use"], entity_id: str) -> None:
        self.kind: Literal["text", "thinking", "tool_use"] = kind
        self.entity_id = entity_id
        self.prefix = agui.delta_prefix(kind, entity_id)
        self.text: list[str] = []
        self.announced = False
        self.name = ""
        self.parent: str | None = None


class Kept(NamedTuple):
    """What remains of a step that did not end: its visible text.

    `dropped`: something shown is left out, or what remains has other ids now that blocks before it are gone.
    """

    content: list[dict[str, Any]]
    dropped: bool


class StepWriter:
    """Translates one model call. `done` is the engine's result once it has come."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.done: StepDone | None = None
        self._blocks: dict[int, _Block] = {}
        self._kept = 0
        self._speaking: str | None = None

    def feed(self, batch: list[StepEvent]) -> list[bytes]:
        """Return the events to publish for a batch.

        Deltas of one block that arrived together become one event: nothing when idle, and under load
        fewer and larger events.
        """
        out: list[bytes] = []
        text: list[str] = []
        current: _Block | None = None
        for event in batch:
            if type(event) is Delta:
                block = self._blocks.get(event.index)
                if block is None:
                    continue
                if block is not current:
                    self._emit(out, current, text)
                    current, text = block, []
                text.append(event.text)
            else:
                self._emit(out, current, text)
                current, text = None, []
                if type(event) is BlockStart:
                    self._open(out, event)
                elif type(event) is StepDone:
                    self.done = event
        self._emit(out, current, text)
        return out

    def _emit(self, out: list[bytes], block: _Block | None, pieces: list[str]) -> None:
        if block is None or not pieces:
            return
        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
        if not text:
            return
        if not block.announced:
            self._announce(out, block)
        block.text.append(text)
        out.append(block.prefix + agui.encode(text) + b"}")

    def _open(self, out: list[bytes], start: BlockStart) -> None:
        match start.kind:
            case "tool_use":
                block = _Block("tool_use", start.id or "")
                block.name = start.name or ""
                own_id = block_id(self.message_id, self._take_place())
                self._speaking = block.parent = self._speaking or own_id
                self._blocks[start.index] = block
                self._announce(out, block)
            case "thinking":
                self._blocks[start.index] = _Block("thinking", block_id(self.message_id, self._take_place()))
            case "text":
                # An empty text block is not kept in the history, so it takes no place before its first delta.
                self._blocks[start.index] = _Block("text", block_id(self.message_id, self._kept))
            case _:
                self._take_place()

    def _take_place(self) -> int:
        self._kept += 1
        return self._kept - 1

    def _announce(self, out: list[bytes], block: _Block) -> None:
        block.announced = True
        match block.kind:
            case "text":
                self._take_place()
                self._speaking = block.entity_id
                out.append(agui.encode(agui.TextMessageStart(message_id=block.entity_id)))
            case "thinking":
                out.append(agui.encode(agui.ReasoningStart(message_id=block.entity_id)))
                out.append(agui.encode(agui.ReasoningMessageStart(message_id=block.entity_id)))
            case "tool_use":
                out.append(
                    agui.encode(
                        agui.ToolCallStart(
                            tool_call_id=block.entity_id,
                            tool_call_name=block.name,
                            parent_message_id=block.parent,
                        )
                    )
                )

    def closings(self) -> list[bytes]:
        """Return the ENDs of everything announced, in the order it was announced."""
        out: list[bytes] = []
        for block in self._blocks.values():
            if not block.announced:
                continue
            match block.kind:
                case "text":
                    out.append(agui.encode(agui.TextMessageEnd(message_id=block.entity_id)))
                case "thinking":
                    out.append(agui.encode(agui.ReasoningMessageEnd(message_id=block.entity_id)))
                    out.append(agui.encode(agui.ReasoningEnd(message_id=block.entity_id)))
                case "tool_use":
                    out.append(agui.encode(agui.ToolCallEnd(tool_call_id=block.entity_id)))
        return out

    def showed_more_than(self, content: list[dict[str, Any]]) -> bool:
        """Say whether readers saw blocks that the engine left out of the result (blank text, a cut call)."""
        kept = sum(block["type"] in ("text", "tool_use") for block in content)
        kept += sum(block["type"] == "thinking" and bool(block["thinking"]) for block in content)
        return sum(block.announced for block in self._blocks.values()) > kept

    def kept(self) -> Kept:
        """Return what to keep when the call was cut short: visible text, but no thinking and no half call.

        The provider refuses thinking without its signature, a tool call without its whole input, and text
        that is white space only.
        """
        texts = ["".join(block.text) for block in self._blocks.values() if block.kind == "text"]
        content = [{"type": "text", "text": text} for text in texts if text.strip()]
        return Kept(content, dropped=len(content) < self._kept)
