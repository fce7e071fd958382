"""AG-UI's own protocol: an unmodified HttpAgent posts a RunAgentInput and reads the run's events.

Thread = session, run = turn. What the client says about the past is not believed: of `messages` only the new
user message is taken. Posting a run again, or after a lost connection, joins it from its beginning.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend import events as agui
from agent_backend.db import sessions as store
from agent_backend.errors import Conflict, FieldError, InvalidRequest
from agent_backend.web.operations import Call, EventStream, operation
from agent_backend.web.requests import clean_text
from agent_backend.web.turns import MAX_TEXT, turn_stream


class RunAgentInput(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """AG-UI 1.0's request. Ids are UUIDs here; state, tools, context and forwardedProps are not used yet."""

    thread_id: UUID
    run_id: UUID
    messages: Annotated[list[dict[str, Any]], Meta(max_length=10_000)]
    protocol_version: str | None = None
    parent_run_id: str | None = None
    state: Any = None
    tools: list[dict[str, Any]] | None = None
    context: list[dict[str, Any]] | None = None
    forwarded_props: Any = None
    resume: list[dict[str, Any]] | None = None


@operation(
    "POST",
    "/v1/agui/{agent}",
    summary="Run an agent over AG-UI",
    tag="agui",
    body=RunAgentInput,
    stream=EventStream("The run's events.", agui.Event),
    problems=(404, 409, 429),
)
async def run_agent(call: Call[RunAgentInput, None]) -> Response:
    """Make the session if it is new, take the last message as a turn and stream it."""
    body = call.body
    message_id, text = _user_message(body.messages)
    commands = call.services.machine.commands
    agent = call.path("agent")
    try:
        await commands.put_session(call.user_id, body.thread_id, agent=agent, title=None)
    except Conflict:
        # Made by another client with a title: any session with this agent will do.
        rows = await store.read_sessions(
            call.services.database, call.user_id, limit=1, session_id=body.thread_id
        )
        if not rows or rows[0].agent != agent:
            raise
    accepted = await commands.put_turn(
        call.user_id, body.thread_id, body.run_id, text=text, on_busy=None, message_id=message_id
    )
    return turn_stream(call.services, call.user_id, body.thread_id, body.run_id, accepted, None)


def _user_message(messages: list[dict[str, Any]]) -> tuple[str | None, str]:
    """Return id and text of the last message, which must be the user's."""
    last = messages[-1] if messages else {}
    field = f"$.messages[{max(0, len(messages) - 1)}]"
    if last.get("role") != "user":
        raise _invalid(f"{field}.role", "the last message must be the user's")
    content = last.get("content")
    if isinstance(content, list):
        content = _text_of_parts(content, field)
    if not isinstance(content, str) or not content.strip():
        raise _invalid(f"{field}.content", "must be text that is not blank")
    given = last.get("id")
    message_id = clean_text(f"{field}.id", given, 200) if isinstance(given, str) and given else None
    return message_id, clean_text(f"{field}.content", content, MAX_TEXT)


def _text_of_parts(parts: list[Any], field: str) -> str:
    texts: list[str] = []
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _invalid(f"{field}.content[{index}]", "only text parts are read")
        texts.append(part["text"])
    return "\n\n".join(texts)


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))


OPERATIONS = (run_agent,)
