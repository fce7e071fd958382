"""Calls that this server cannot answer alone: a device runs them, or the user allows them first; pure.

What the model reads of an answer is decided here. What a device sent stays data.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agent_backend import events as agui
from agent_backend.db.tool_calls import ParkedCall, ToolCallRow, WaitingState
from agent_backend.tools.base import ToolResult
from agent_backend.tools.texts import visible
from agent_backend.turns.arguments import mismatch
from agent_backend.turns.history import ToolCall
from agent_backend.turns.versions import DeviceTool, FrozenAgent

_NO_ERROR = frozenset({"ok", "empty_or_denied"})
_EXPLAINED: dict[str, str] = {
    "empty_or_denied": "The device has no such data, or may not read it; it cannot tell which.",
    "locked": "The device is locked, so it cannot read this now.",
    "unavailable": "The device could not do this.",
    "declined": "The user declined this.",
    "timeout": "Nobody answered in time. The user may have put the device away.",
}


class Sorted(NamedTuple):
    """The open calls of a step: to run here, answered from outside, and to be waited for."""

    to_run: list[ToolCall]
    answered: list[tuple[ToolCall, ToolResult]]
    to_park: list[ParkedCall]


def sort(calls: list[ToolCall], agent: FrozenAgent, rows: Mapping[str, ToolCallRow]) -> Sorted:
    """Say what is to be done about each open call; `rows` are what is known of those asked already, by id.

    A call that needs the user's yes is run only if the answer is `ok`; one whose arguments are not what the
    client declared is answered here and goes to no device.
    """
    approvals = {tool.name for tool in agent.approval_tools}
    device_tools = {tool.name: tool for tool in agent.device_tools}
    done = Sorted([], [], [])
    for call in calls:
        row = rows.get(call.id)
        if call.name not in approvals and call.name not in device_tools:
            done.to_run.append(call)
        elif row is None and (wrong := _unfit(call, device_tools.get(call.name))) is not None:
            done.answered.append((call, wrong))
        elif row is None or row.is_open:
            effects = call.name in device_tools and device_tools[call.name].effects
            text = msgspec.json.encode(call.input).decode()
            kind = "approval" if call.name in approvals else "device"
            done.to_park.append(ParkedCall(call.id, call.name, kind, effects, text))
        elif row.kind == "approval" and row.status == "ok":
            done.to_run.append(call)
        else:
            done.answered.append((call, result_of(row)))
    return done


def _unfit(call: ToolCall, tool: DeviceTool | None) -> ToolResult | None:
    """Return the answer to a call that no device gets to see, because its arguments are not as declared."""
    wrong = None if tool is None else mismatch(tool.input_schema, call.input)
    return None if wrong is None else ToolResult(content=f"{wrong}.", is_error=True)


def result_of(row: ToolCallRow) -> ToolResult:
    """Return what the model reads of an answered call: as the device sent it, but for what nobody sees."""
    status = row.status or "unavailable"
    if status == "ok":
        return ToolResult(content=visible(row.content or ""))
    text = {"status": status, "message": visible(row.content or "") or _EXPLAINED[status]}
    return ToolResult(content=msgspec.json.encode(text).decode(), is_error=status not in _NO_ERROR)


def state_for(calls: list[ParkedCall]) -> WaitingState:
    """Return the state of a turn that waits for these calls."""
    return "waiting_device" if any(call.kind == "device" for call in calls) else "waiting_approval"


def pending_events(calls: list[ParkedCall], expires_at: dt.datetime) -> list[bytes]:
    """Return what readers are told when a turn is parked."""
    return [
        agui.encode(
            agui.Custom(
                name="tool_call_pending",
                value=agui.PendingToolCall(
                    tool_call_id=call.id,
                    tool_name=call.name,
                    kind=call.kind,
                    effects=call.effects,
                    expires_at=expires_at,
                ),
            )
        )
        for call in calls
    ]
