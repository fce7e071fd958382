"""One turn as it is known so far, put together from events; pure.

What is settled never changes, what is not may: after a takeover the server closes what was open and sends
MESSAGES_SNAPSHOT, which replaces it. An END right before a snapshot is such a closing, so a block counts as
settled only once something else has followed its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from myhealth_cli import events as agui

if TYPE_CHECKING:
    from collections.abc import Iterable

    from myhealth_cli.events import Event

Kind: TypeAlias = Literal["text", "reasoning", "call"]
Ending: TypeAlias = Literal["success", "cancelled", "interrupt", "failed"]


@dataclass
class Block:
    """A message, a thought or a tool call. `text` of a call is its arguments (JSON)."""

    kind: Kind
    id: str
    text: str = ""
    name: str = ""
    result: str | None = None
    closed: bool = False
    settled: bool = False


@dataclass
class Transcript:
    """The blocks of the turn that runs, in order; `ending` once it has ended, `problem` if it failed."""

    blocks: list[Block] = field(default_factory=list[Block])
    ending: Ending | None = None
    problem: str = ""
    _run: str | None = None
    _asked: str | None = None

    def apply(self, event: Event) -> None:
        """Take an event in."""
        match event:
            case agui.RunStarted():
                self._start(event)
            case agui.MessagesSnapshot():
                self._replace(event.messages)
            case agui.RunFinished() | agui.RunError():
                self._settle()
                self._end(event)
            case agui.TextEnd() | agui.ReasoningEnd():
                self._close(event.message_id)
            case agui.ToolCallEnd():
                self._close(event.tool_call_id)
            case agui.Unknown():
                pass
            case agui.Custom():
                self._settle()
            case _:
                self._settle()
                self._grow(event)

    def _start(self, event: agui.RunStarted) -> None:
        if event.run_id != self._run:
            self.blocks.clear()
            self._run, self._asked = event.run_id, None
        self.ending, self.problem = None, ""
        if event.input is not None:
            self._asked = next((each.id for each in event.input.messages if each.role == "user"), None)

    def _replace(self, messages: list[agui.Message]) -> None:
        asked = [i for i, each in enumerate(messages) if each.role == "user"]
        own = [i for i in asked if messages[i].id == self._asked] or asked[-1:]
        self.blocks[:] = blocks_of(messages[own[0] + 1 :] if own else messages)

    def _grow(self, event: Event) -> None:
        match event:
            case agui.TextStart():
                self.blocks.append(Block("text", event.message_id))
            case agui.ReasoningStart():
                self.blocks.append(Block("reasoning", event.message_id))
            case agui.ToolCallStart():
                self.blocks.append(Block("call", event.tool_call_id, name=event.tool_call_name))
            case agui.TextContent() | agui.ReasoningContent():
                self._extend(event.message_id, event.delta)
            case agui.ToolCallArgs():
                self._extend(event.tool_call_id, event.delta)
            case agui.ToolCallResult():
                for block in self._named(event.tool_call_id):
                    block.result = event.content
                    block.closed = block.settled = True
            case _:
                pass

    def _named(self, block_id: str) -> Iterable[Block]:
        return (block for block in self.blocks if block.id == block_id)

    def _extend(self, block_id: str, delta: str) -> None:
        for block in self._named(block_id):
            block.text += delta

    def _close(self, block_id: str) -> None:
        for block in self._named(block_id):
            block.closed = True

    def _settle(self) -> None:
        for block in self.blocks:
            if block.closed and block.kind != "call":
                block.settled = True

    def _end(self, event: agui.RunFinished | agui.RunError) -> None:
        for block in self.blocks:
            block.settled = True
        if isinstance(event, agui.RunError):
            self.ending, self.problem = "failed", event.message
            return
        kind = event.outcome.type if event.outcome is not None else "success"
        self.ending = kind if kind in {"cancelled", "interrupt"} else "success"  # pyright: ignore[reportAttributeAccessIssue]


def blocks_of(messages: list[agui.Message]) -> list[Block]:
    """Return the blocks of settled messages; the person's own messages are left out."""
    blocks: list[Block] = []
    for message in messages:
        match message.role:
            case "reasoning":
                blocks.append(Block("reasoning", message.id, message.content or ""))
            case "assistant":
                if message.content is not None:
                    blocks.append(Block("text", message.id, message.content))
                blocks += [
                    Block("call", each.id, each.function.arguments, each.function.name)
                    for each in message.tool_calls
                ]
            case "tool":
                for block in blocks:
                    if block.kind == "call" and block.id == message.tool_call_id:
                        block.result = message.content or ""
            case _:
                pass
    for block in blocks:
        block.closed = True
        block.settled = block.kind != "call" or block.result is not None
    return blocks
