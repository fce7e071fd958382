"""A turn on a stream of plain text: for pipes and logs, where nothing that was written can be changed."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractContextManager

    from myhealth_cli.client import Connection
    from myhealth_cli.machine import Change
    from myhealth_cli.transcript import Block, Transcript

_AGAIN = "(the answer was interrupted and is given again)"


class PlainView:
    """Writes text as it arrives, and a tool call with its whole result when that is there."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._transcript: Transcript | None = None
        self._written: dict[str, str] = {}
        self._at_line_start = True

    @asynccontextmanager
    async def running(self, transcript: Transcript) -> AsyncGenerator[None]:
        """Write the transcript as it grows, and finish the line."""
        self._transcript = transcript
        try:
            yield
        finally:
            self._line("")

    def update(self) -> None:
        """Write what is new."""
        assert self._transcript is not None, "inside running()"
        present = {block.id for block in self._transcript.blocks}
        if any(text for block_id, text in self._written.items() if block_id not in present):
            # The server has replaced what was never settled; the reader is told which text holds.
            self._line(_AGAIN)
            self._written = {name: text for name, text in self._written.items() if name in present}
        for block in self._transcript.blocks:
            self._show(block)

    def connection(self, change: Connection) -> None:
        """Say that the connection was lost, or is back."""
        self._line("(reconnecting...)" if change.state == "lost" else "(connected again)")

    def machine(self, change: Change) -> None:
        """Say what the server's machine does."""
        self._line(str(change))

    def stopping(self) -> None:
        """Say that the turn was asked to end."""
        self._line("(stopping...)")

    def paused(self) -> AbstractContextManager[None]:
        """Begin a line for what is asked meanwhile."""
        self._line("")
        return nullcontext()

    def _show(self, block: Block) -> None:
        if block.kind == "call":
            if block.result is not None and block.id not in self._written:
                self._written[block.id] = ""
                self._line(f"  > {block.name} {_compact(block.text)}")
                self._line(f"    = {_compact(block.result)}")
            return
        if block.kind == "reasoning":
            return
        before = self._written.get(block.id, "")
        if not block.text.startswith(before):
            self._line(_AGAIN)
            before = ""
        if not before and block.text:
            self._line("")
        self._write(block.text[len(before) :])
        self._written[block.id] = block.text

    def _line(self, text: str) -> None:
        if not self._at_line_start:
            self._write("\n")
        if text:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._at_line_start = text.endswith("\n")


def _compact(text: str) -> str:
    """Return JSON on one line, and any other text on one as well."""
    try:
        return msgspec.json.encode(msgspec.json.decode(text or "{}")).decode()
    except msgspec.DecodeError:
        return " ".join(text.split())
