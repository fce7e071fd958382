"""Turns: one user message and everything the agent does about it."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend import events as agui
from agent_backend.auth import Principal
from agent_backend.db import sessions as store
from agent_backend.errors import FieldError, InvalidRequest, NotFound
from agent_backend.events import Cursor
from agent_backend.sessions import FINAL, OnBusy, TurnState
from agent_backend.web.operations import Call, EventStream, operation, reply
from agent_backend.web.requests import clean_text
from agent_backend.web.services import Services
from agent_backend.web.sse import EventStreamResponse
from agent_backend.web.stream import Follower, Placed, one_turn, parse_cursor

MAX_TEXT = 100_000
"""Characters of one user message."""


class TurnPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user message. `on_busy`: what to do while another turn runs; if not given, the agent's own way."""

    content: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    on_busy: OnBusy | None = None


class TurnUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the turn has cost so far; the token counts do not overlap."""

    model_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    cost_usd_micros: int


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn. Following the session after `cursor` shows it from its RUN_STARTED."""

    id: UUID
    session_id: UUID
    state: TurnState
    cursor: str
    error_code: str | None = None
    cancel_requested: bool = False
    created_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    usage: TurnUsage | None = None


class AcceptedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """The turn was taken: it will be answered whether or not anyone is connected."""

    id: UUID
    session_id: UUID
    state: TurnState
    cursor: str


_DESCRIPTION = (
    "The client makes the id (UUIDv7 is best). Sending the same again is harmless and answers 200. With "
    "`Accept: text/event-stream` the answer is the turn's stream, from Last-Event-ID or its RUN_STARTED to "
    "its end; the header Turn-Cursor names where to resume should nothing of it arrive."
)


@operation(
    "PUT",
    "/v1/sessions/{session_id}/turns/{turn_id}",
    summary="Send a message",
    description=_DESCRIPTION,
    tag="turns",
    limit="turns",
    body=TurnPut,
    replies={200: AcceptedTurn, 202: AcceptedTurn},
    stream=EventStream("The turn's events.", agui.Event),
    problems=(400, 402, 403, 404, 409, 429),
)
async def put_turn(call: Call[TurnPut, None]) -> Response:
    """Take the message; answer with the turn, or with its stream."""
    session_id, turn_id = call.uuid("session_id"), call.uuid("turn_id")
    text = clean_text("$.content", call.body.content, MAX_TEXT)
    if not text.strip():
        reason = "must not be blank"
        raise InvalidRequest(f"$.content: {reason}", errors=(FieldError("$.content", reason),))
    call.said = text
    after = parse_cursor(call.header(b"last-event-id"), "Last-Event-ID") if call.accepts_events() else None
    accepted = await call.services.machine.commands.put_turn(
        call.user_id, session_id, turn_id, text=text, on_busy=call.body.on_busy
    )
    if call.accepts_events():
        return turn_stream(call.services, call.principal, session_id, turn_id, accepted, after)
    turn = AcceptedTurn(
        id=turn_id, session_id=session_id, state=_state(accepted.state), cursor=str(accepted.cursor)
    )
    return reply(turn, 202 if accepted.status == "created" else 200)


def turn_stream(
    services: Services,
    principal: Principal,
    session_id: UUID,
    turn_id: UUID,
    accepted: store.Accepted,
    after: Cursor | None,
) -> EventStreamResponse:
    """Return the stream of an accepted turn, from a cursor inside it or from its beginning."""
    batches = turn_events(services, principal.user_id, session_id, turn_id, accepted, after)
    headers = {"turn-cursor": str(accepted.cursor)}
    return EventStreamResponse(batches, str(session_id), until=principal.streams_until, headers=headers)


async def turn_events(
    services: Services,
    user_id: UUID,
    session_id: UUID,
    turn_id: UUID,
    accepted: store.Accepted,
    after: Cursor | None,
) -> AsyncGenerator[list[Placed]]:
    """Yield an accepted turn's events up to its end."""
    begun = accepted.state != "queued"
    inside = begun and after is not None and after > accepted.cursor
    start = after if inside else accepted.cursor
    follower = Follower(services.machine, user_id, session_id, start, turn_id)
    # A finished turn has nothing to wait for, wherever the cursor stands.
    batches = follower.batches(wait=accepted.state not in FINAL)
    async with aclosing(batches), aclosing(one_turn(batches, turn_id, inside=inside)) as own:
        async for batch in own:
            yield batch


@operation(
    "GET",
    "/v1/sessions/{session_id}/turns/{turn_id}",
    summary="Read a turn",
    tag="turns",
    replies={200: Turn},
    problems=(404,),
)
async def get_turn(call: Call[None, None]) -> Response:
    """Answer with the turn's state, times and usage."""
    session_id, turn_id = call.uuid("session_id"), call.uuid("turn_id")
    row = await store.read_turn(call.services.database, call.user_id, session_id, turn_id)
    if row is None:
        raise NotFound("There is no such turn.")
    return reply(
        Turn(
            id=turn_id,
            session_id=session_id,
            state=_state(row.state),
            cursor=str(Cursor(row.cursor_epoch, row.cursor_n)),
            error_code=row.error_code,
            cancel_requested=row.cancel_requested,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            usage=TurnUsage(
                model_calls=row.model_calls,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                cache_read_input_tokens=row.cache_read_input_tokens,
                cache_write_input_tokens=row.cache_write_input_tokens,
                cost_usd_micros=row.cost_usd_micros,
            ),
        )
    )


class CancelRequested(msgspec.Struct, frozen=True, kw_only=True):
    """The turn's state when the request was taken; its end arrives in the stream."""

    id: UUID
    session_id: UUID
    state: TurnState


@operation(
    "POST",
    "/v1/sessions/{session_id}/turns/{turn_id}/cancel",
    summary="Stop a turn",
    description="What is visible stays. A finished turn stays as it is. Sending it again is harmless.",
    tag="turns",
    replies={202: CancelRequested},
    problems=(404,),
)
async def cancel_turn(call: Call[None, None]) -> Response:
    """Ask for the turn's end; closing a connection never does."""
    session_id, turn_id = call.uuid("session_id"), call.uuid("turn_id")
    state = await call.services.machine.commands.cancel(call.user_id, session_id, turn_id)
    return reply(CancelRequested(id=turn_id, session_id=session_id, state=_state(state)), 202)


def _state(text: str | None) -> TurnState:
    return msgspec.convert(text, TurnState)


OPERATIONS = (put_turn, get_turn, cancel_turn)
