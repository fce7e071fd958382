"""A turn on a stream of plain text: for pipes and logs, where nothing that was written can be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from myhealth_cli.client import Connection
    from myhealth_cli.transcript import Block, Transcript

_AGAIN = "(the answer was interrupted and is given again)"


class PlainView:
    """Writes text as it arrives, and a tool call with its whole result when that is there."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._written: dict[str, str] = {}
        self._at_line_start = True

    def show(self, transcript: Transcript) -> None:
        """Write what is new."""
        present = {block.id for block in transcript.blocks}
        if any(written for block_id, written in self._written.items() if block_id not in present):
            # The server has replaced what was never settled; the reader is told which text holds.
            self._line(_AGAIN)
            self._written = {
                block_id: text for block_id, text in self._written.items() if block_id in present
            }
        for block in transcript.blocks:
            self._show(block)

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

    def connection(self, change: Connection) -> None:
        """Say that the connection was lost, or is back."""
        self._line("(reconnecting...)" if change.state == "lost" else "(connected again)")

    def end(self) -> None:
        """Finish the line."""
        self._line("")
        self._written.clear()

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
