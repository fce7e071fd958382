"""Calls that wait for somebody outside: a device that runs them, or the user's yes."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.errors import NotFound
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.requests import clean_text

MAX_RESULT = 200_000
"""Characters of one result; what the model can read of it is less."""

_Device = Annotated[str, Meta(min_length=1, max_length=200)]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that waits for an answer.

    `kind` device: a device runs it, after claiming it if it has `effects`. approval: the user says yes
    (`ok`) or no (`declined`), and the server runs it or not. After `expires_at` the turn may go on without
    an answer.
    """

    id: str
    turn_id: UUID
    name: str
    kind: Literal["device", "approval"]
    effects: bool
    input: dict[str, Any]
    device: str | None
    created_at: dt.datetime
    expires_at: dt.datetime


class ToolCallList(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a session that wait for an answer, oldest first."""

    tool_calls: list[ToolCall]


@operation(
    "GET",
    "/v1/sessions/{session_id}/tool-calls",
    summary="List calls that wait for an answer",
    description="What an app asks when it wakes up.",
    tag="tool calls",
    replies={200: ToolCallList},
    problems=(404,),
)
async def list_tool_calls(call: Call[None, None]) -> Response:
    """Answer with the open calls of a parked turn, if there are any."""
    database, session_id = call.services.database, call.uuid("session_id")
    rows = await tool_calls.read(database, call.user_id, session_id)
    if not rows and not await store.read_sessions(database, call.user_id, session_id=session_id, limit=1):
        raise NotFound("There is no such session.")
    return reply(ToolCallList(tool_calls=[_shown(row) for row in rows]))


class ToolCallClaim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which device will act; an id of its own making."""

    device: _Device


class ClaimedToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """The call is this device's to answer."""

    id: str
    session_id: UUID
    device: str


@operation(
    "POST",
    "/v1/sessions/{session_id}/tool-calls/{call}/claim",
    summary="Claim a call for one device",
    description="Before a device acts on a call with effects. Sending the same again is harmless.",
    tag="tool calls",
    body=ToolCallClaim,
    replies={200: ClaimedToolCall},
    problems=(404, 409),
)
async def claim_tool_call(call: Call[ToolCallClaim, None]) -> Response:
    """Answer 200 if the call is this device's, now or already."""
    session_id, call_id = call.uuid("session_id"), call.path("call")
    device = clean_text("$.device", call.body.device, 200)
    await call.services.machine.commands.claim_call(call.user_id, session_id, call_id, device)
    return reply(ClaimedToolCall(id=call_id, session_id=session_id, device=device))


class ToolResultPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to a call. `content` is what the model reads; `device` says who answers a claimed call."""

    status: Literal["ok", "empty_or_denied", "locked", "unavailable", "declined"]
    content: Annotated[str, Meta(max_length=MAX_RESULT)] | None = None
    device: _Device | None = None


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that counts."""

    id: str
    session_id: UUID
    status: Literal["ok", "empty_or_denied", "locked", "unavailable", "declined"]


@operation(
    "PUT",
    "/v1/sessions/{session_id}/tool-calls/{call}/result",
    summary="Answer a call",
    description=(
        "The first answer counts; the same again is harmless. The last answer a turn waits for wakes it: its "
        "events go on with TOOL_CALL_RESULT."
    ),
    tag="tool calls",
    body=ToolResultPut,
    replies={200: ToolResult},
    problems=(403, 404, 409),
)
async def put_tool_result(call: Call[ToolResultPut, None]) -> Response:
    """Take the answer; it is written when this returns."""
    session_id, call_id, body = call.uuid("session_id"), call.path("call"), call.body
    content = body.content
    if content is not None:
        content = clean_text("$.content", content, MAX_RESULT, empty=True)
    device = None if body.device is None else clean_text("$.device", body.device, 200)
    await call.services.machine.commands.put_result(
        call.user_id, session_id, call_id, status=body.status, content=content, device=device
    )
    return reply(ToolResult(id=call_id, session_id=session_id, status=body.status))


def _shown(row: tool_calls.ToolCallRow) -> ToolCall:
    return ToolCall(
        id=row.id,
        turn_id=row.turn_id,
        name=row.name,
        kind=row.kind,
        effects=row.effects,
        input=msgspec.json.decode(row.input),
        device=row.device,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


OPERATIONS = (list_tool_calls, claim_tool_call, put_tool_result)
