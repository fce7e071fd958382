"""AG-UI's own protocol: an unmodified HttpAgent posts a RunAgentInput and reads the run's events.

Thread = session, run = turn, with one difference: in AG-UI a run ends when it needs an answer from outside,
and another one brings it; here a turn is parked and goes on. So a run's stream ends where its turn is parked,
and a run that brings answers is the rest of that turn under the new run's id.

What the client says about the past is not believed: of `messages` only the new user message is taken, or
the results for calls that wait, and of `resume` the answers to them. Posting a run again, or after a lost
connection, joins it from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend import events as agui
from agent_backend.agents import Agent
from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.errors import Conflict, FieldError, InvalidRequest, NotFound
from agent_backend.sessions import FINAL
from agent_backend.web.device_tools import from_agui
from agent_backend.web.operations import Call, EventStream, operation
from agent_backend.web.requests import clean_text
from agent_backend.web.sse import EventStreamResponse
from agent_backend.web.stream import Follower, Placed
from agent_backend.web.tool_calls import MAX_RESULT
from agent_backend.web.turns import MAX_TEXT, turn_events

_YES: dict[str, Any] = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}},
    "required": ["approved"],
}
"""What answers an approval, as JSON Schema."""


class ResumeEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to an interrupt, which is a call that waits for the user's yes.

    Yes is `resolved` with the payload `{"approved": true}`; anything else is no.
    """

    interrupt_id: Annotated[str, Meta(min_length=1, max_length=200)]
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunAgentInput(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """AG-UI 1.0's request. Ids are UUIDs here; state, context and forwardedProps are not used yet."""

    thread_id: UUID
    run_id: UUID
    messages: Annotated[list[dict[str, Any]], Meta(max_length=10_000)]
    protocol_version: str | None = None
    parent_run_id: str | None = None
    state: Any = None
    tools: list[dict[str, Any]] | None = None
    context: list[dict[str, Any]] | None = None
    forwarded_props: Any = None
    resume: Annotated[list[ResumeEntry], Meta(max_length=100)] | None = None


@operation(
    "POST",
    "/v1/agui/{agent}",
    summary="Run an agent over AG-UI",
    tag="agui",
    limit="turns",
    body=RunAgentInput,
    stream=EventStream("The run's events.", agui.Event),
    problems=(402, 403, 404, 409, 429),
)
async def run_agent(call: Call[RunAgentInput, None]) -> Response:
    """Take the last message as a turn, or as answers to one that waits, and stream it."""
    agent = call.services.agents.get(call.path("agent"))
    if agent is None:
        raise NotFound("There is no such agent.")
    body = call.body
    headers: dict[str, str] = {}
    answers = _answers(body)
    if answers:
        events = await _go_on(call, agent, answers)
    else:
        message_id, text = _user_message(body.messages)
        call.said = text
        await _session(call, agent)
        accepted = await call.services.machine.commands.put_turn(
            call.user_id, body.thread_id, body.run_id, text=text, on_busy=None, message_id=message_id
        )
        headers["turn-cursor"] = str(accepted.cursor)
        events = turn_events(call.services, call.user_id, body.thread_id, body.run_id, accepted, None)
    run = _until_it_waits(events, str(body.thread_id), str(body.run_id))
    until = call.principal.streams_until
    return EventStreamResponse(run, str(body.thread_id), until=until, headers=headers)


async def _session(call: Call[RunAgentInput, None], agent: Agent) -> None:
    """Make the session if it is new; its tools are those of the client's first run."""
    thread = call.body.thread_id
    rows = await store.read_sessions(call.services.database, call.user_id, limit=1, session_id=thread)
    if rows:
        if rows[0].agent != agent.name:
            raise Conflict("This thread is another agent's.")
        return
    tools = from_agui(call.body.tools or [], agent)
    commands = call.services.machine.commands
    await commands.put_session(call.user_id, thread, agent=agent.name, title=None, device_tools=tools)


# --- answers ------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """An answer to a call, and the kind of call it may answer."""

    kind: Literal["device", "approval"]
    status: Literal["ok", "unavailable", "declined"]
    content: str | None


def _answers(body: RunAgentInput) -> dict[str, _Answer]:
    """Return what the run brings for calls that wait, by call: results at the end of `messages`, `resume`."""
    answers: dict[str, _Answer] = {}
    for index in range(len(body.messages) - 1, -1, -1):
        message = body.messages[index]
        if message.get("role") != "tool":
            break
        field = f"$.messages[{index}]"
        call_id, content, error = (message.get(key) for key in ("toolCallId", "content", "error"))
        if not isinstance(call_id, str):
            raise _invalid(f"{field}.toolCallId", "must be a string")
        if isinstance(content, list):
            content = _text_of_parts(content, field)
        if not isinstance(content, str):
            raise _invalid(f"{field}.content", "must be text")
        text = clean_text(f"{field}.content", content, MAX_RESULT, empty=True)
        answers[call_id] = _Answer("device", "ok" if error is None else "unavailable", text)
    for entry in body.resume or []:
        yes = entry.status == "resolved" and entry.payload == {"approved": True}
        answers[entry.interrupt_id] = _Answer("approval", "ok" if yes else "declined", None)
    return answers


async def _go_on(
    call: Call[RunAgentInput, None], agent: Agent, answers: dict[str, _Answer]
) -> AsyncGenerator[list[Placed]]:
    """Hand answers in and return what follows in the turn they are for.

    An answer that came too late changes nothing: the events say which one counted.
    """
    services, user_id, thread = call.services, call.user_id, call.body.thread_id
    sessions = await store.read_sessions(services.database, user_id, limit=1, session_id=thread)
    if not sessions or sessions[0].agent != agent.name:
        raise NotFound("There is no such thread.")
    known = await tool_calls.read(services.database, user_id, thread, ids=list(answers))
    rows = [row for row in known if answers[row.id].kind == row.kind]
    if not rows:
        raise _invalid("$.messages", "the last message must be the user's, or answer a call that waits")
    last = max(rows, key=lambda row: row.parked)
    for row in rows:
        if row.is_open and row.turn_id == last.turn_id:
            await _hand_in(call, row, answers[row.id])
    turn = await store.read_turn(services.database, user_id, thread, last.turn_id)
    assert turn is not None, "its calls are there"
    follower = Follower(services.machine, user_id, thread, last.parked, last.turn_id)
    return _rest(follower, str(thread), str(call.body.run_id), wait=turn.state not in FINAL)


async def _hand_in(call: Call[RunAgentInput, None], row: tool_calls.ToolCallRow, answer: _Answer) -> None:
    if row.effects or row.device is not None:
        raise Conflict("This call is answered by the device that has claimed it, not over AG-UI.")
    try:
        await call.services.machine.commands.put_result(
            call.user_id,
            call.body.thread_id,
            row.id,
            status=answer.status,
            content=answer.content,
            device=None,
        )
    except Conflict:
        return


# --- streams ------------------------------------------------------------------------------------------


async def _rest(follower: Follower, thread: str, run: str, *, wait: bool) -> AsyncGenerator[list[Placed]]:
    """Yield the rest of a turn as a run of its own."""
    started = agui.RunStarted(thread_id=thread, run_id=run, timestamp=round(time.time() * 1000))
    yield [Placed(None, agui.encode(started))]
    async with aclosing(follower.batches(wait=wait)) as batches:
        async for batch in batches:
            own: list[Placed] = []
            for each in batch:
                if each.event.startswith(b'{"type":"RUN_STARTED"'):
                    continue  # the cursor fell off the log: the conversation follows, in the run begun above
                own.append(_renamed(each, run))
                if agui.ends_run(each.event):
                    yield own
                    return
            yield own


def _renamed(placed: Placed, run: str) -> Placed:
    if placed.event.startswith(b'{"type":"RUN_FINISHED"'):
        return Placed(placed.cursor, agui.of_run(placed.event, run))
    return placed


async def _until_it_waits(
    events: AsyncGenerator[list[Placed]], thread: str, run: str
) -> AsyncGenerator[list[Placed]]:
    """Yield a run's events, and end it where its turn is parked."""
    waiting: list[agui.PendingToolCall] = []
    async with aclosing(events):
        async for batch in events:
            for index, each in enumerate(batch):
                call = agui.pending_call(each.event)
                if call is not None:
                    waiting.append(call)
                elif waiting:
                    yield batch[:index]
                    break
            else:
                yield batch
            # The calls of one parking are settled together, so they come together.
            if waiting:
                yield [Placed(None, _waits(waiting, thread, run))]
                return


def _waits(calls: list[agui.PendingToolCall], thread: str, run: str) -> bytes:
    """Return the end of a run that waits: for the user's yes (an interrupt), else for results."""
    interrupts = [
        agui.Interrupt(
            id=call.tool_call_id,
            reason="approval",
            tool_call_id=call.tool_call_id,
            response_schema=_YES,
        )
        for call in calls
        if call.kind == "approval"
    ]
    ids = [call.tool_call_id for call in calls]
    outcome = (
        agui.InterruptOutcome(interrupts=interrupts)
        if interrupts
        else agui.SuccessOutcome(pending_tool_call_ids=ids)
    )
    return agui.encode(
        agui.RunFinished(thread_id=thread, run_id=run, outcome=outcome, timestamp=round(time.time() * 1000))
    )


# --- messages -----------------------------------------------------------------------------------------


def _user_message(messages: list[dict[str, Any]]) -> tuple[str | None, str]:
    """Return id and text of the last message, which must be the user's."""
    last = messages[-1] if messages else {}
    field = f"$.messages[{max(0, len(messages) - 1)}]"
    if last.get("role") != "user":
        raise _invalid(f"{field}.role", "the last message must be the user's, or a tool's result")
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
