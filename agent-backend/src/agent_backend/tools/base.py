"""The tool port: what the model may call.

A tool is an async function with type hints, made into a `Tool` by `tool()`: its schema comes from the
hints, its description from the docstring, its arguments arrive validated.

The laws (`tests/tools/conformance.py` checks them for every tool):

- `run` reads what it needs and returns; it never writes. A tool with effects returns
  `ToolResult.effect`, and the runner executes that in the very transaction that settles the result, keyed by
  the tool_use id: exactly once.
- An effect may refuse by raising `ToolFailed`, if what `run` saw has changed: then neither it nor the result
  is written, and the model is told.
- `ModelRetry` (called wrongly) and `ToolFailed` (could not) are told to the model as an error result. Any
  other exception is ours: it is logged by type only and the model is told that the tool is broken.
  None of these ends the turn.
- Cancellation may happen at every await and leaves nothing behind.
- Results are compact JSON text with units, time zone and source; what users or devices wrote into
  the data stays data.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

import msgspec

from agent_backend.db.pool import Connection, Database

Effect: TypeAlias = Callable[[Connection], Awaitable[None]]


class ToolContext(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, and what with. `now` is timezone-aware in the user's time zone."""

    db: Database
    user_id: UUID
    session_id: UUID
    turn_id: UUID
    tool_use_id: str
    time_zone: str
    locale: str
    now: dt.datetime


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the model gets. `effect` is executed in the settling transaction (see the module's laws)."""

    content: str
    is_error: bool = False
    effect: Effect | None = None


@runtime_checkable
class Checking(Protocol):
    """A tool that can say beforehand that it will refuse: nobody is asked for a yes that leads nowhere."""

    async def check(self, context: ToolContext, arguments: dict[str, Any]) -> None:
        """Raise ModelRetry or ToolFailed as `run` would. Writes nothing, reads nothing that `run` tells."""
        ...


class Tool(Protocol):
    """Something the model may call."""

    name: str
    description: str
    input_schema: dict[str, Any]

    async def run(self, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
        """Run with the arguments the model wrote (not yet validated). Raises ModelRetry, ToolFailed."""
        ...
