"""Sessions and their messages."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend.db import sessions as store
from agent_backend.errors import FieldError, InvalidRequest, NotFound
from agent_backend.transcript import to_agui
from agent_backend.web.device_tools import MAX_TOOLS, DeviceToolPut, declared
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.requests import clean_text

_Limit = Annotated[int, Meta(ge=1, le=200)]


class SessionPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new session: which agent, a title of the client's choice, and the tools that the client runs.

    The tools are frozen with the session: other tools need another session.
    """

    agent: Annotated[str, Meta(min_length=1, max_length=64)] = "coach"
    title: Annotated[str, Meta(max_length=200)] | None = None
    device_tools: Annotated[list[DeviceToolPut], Meta(max_length=MAX_TOOLS)] = []


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation of one user with one agent. `cursor` is its last settled position."""

    id: UUID
    agent: str
    title: str | None
    created_at: dt.datetime
    cursor: str


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions, newest first; `next` continues the list as `before`."""

    sessions: list[Session]
    next: str | None


class SessionsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the list."""

    before: str | None = None
    limit: _Limit = 50


class MessageList(msgspec.Struct, frozen=True, kw_only=True):
    """Settled messages as AG-UI messages; reading on from `cursor` misses nothing and repeats nothing.

    `next` continues the list as `after`; null at its end.
    """

    messages: list[dict[str, Any]]
    cursor: str
    next: int | None


class MessagesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the conversation: messages with a number above `after`."""

    after: Annotated[int, Meta(ge=0, le=2_000_000_000)] = 0
    limit: _Limit = 200


@operation(
    "PUT",
    "/v1/sessions/{session_id}",
    summary="Make a session",
    description="The client makes the id (UUIDv7 is best). Sending the same again is harmless.",
    tag="sessions",
    body=SessionPut,
    replies={200: Session, 201: Session},
    problems=(404, 409),
)
async def put_session(call: Call[SessionPut, None]) -> Response:
    """Answer 201 for a new session, 200 for one that is there already."""
    session_id = call.uuid("session_id")
    title = call.body.title
    if title is not None:
        title = clean_text("$.title", title, 200)
    agent = call.services.agents.get(call.body.agent)
    if agent is None:
        reason = "there is no agent of this name"
        raise InvalidRequest(f"$.agent: {reason}", errors=(FieldError("$.agent", reason),))
    put = await call.services.machine.commands.put_session(
        call.user_id,
        session_id,
        agent=agent.name,
        title=title,
        device_tools=declared(call.body.device_tools, agent),
    )
    session = Session(
        id=session_id, agent=put.agent, title=put.title, created_at=put.created_at, cursor=str(put.cursor)
    )
    return reply(session, 201 if put.status == "created" else 200)


@operation(
    "GET",
    "/v1/sessions",
    summary="List sessions",
    tag="sessions",
    query=SessionsQuery,
    replies={200: SessionList},
)
async def list_sessions(call: Call[None, SessionsQuery]) -> Response:
    """Answer with the user's sessions, newest first."""
    rows = await store.read_sessions(
        call.services.database, call.user_id, before=_parse_place(call.query.before), limit=call.query.limit
    )
    more = f"{rows[-1].created_at.isoformat()}~{rows[-1].id}" if len(rows) == call.query.limit else None
    return reply(SessionList(sessions=[_session(row) for row in rows], next=more))


@operation(
    "GET",
    "/v1/sessions/{session_id}",
    summary="Read a session",
    tag="sessions",
    replies={200: Session},
    problems=(404,),
)
async def get_session(call: Call[None, None]) -> Response:
    """Answer with one session."""
    rows = await store.read_sessions(
        call.services.database, call.user_id, limit=1, session_id=call.uuid("session_id")
    )
    if not rows:
        raise NotFound("There is no such session.")
    return reply(_session(rows[0]))


@operation(
    "GET",
    "/v1/sessions/{session_id}/messages",
    summary="Read the conversation",
    tag="sessions",
    query=MessagesQuery,
    replies={200: MessageList},
    problems=(404,),
)
async def list_messages(call: Call[None, MessagesQuery]) -> Response:
    """Answer with settled messages and the cursor they are settled at."""
    query = call.query
    read = await store.read_messages(
        call.services.database,
        call.user_id,
        call.uuid("session_id"),
        after=query.after,
        limit=query.limit,
    )
    if read is None:
        raise NotFound("There is no such session.")
    last = read.messages[-1].n if read.messages else read.last_message
    return reply(
        MessageList(
            messages=to_agui(read.messages),
            cursor=str(read.settled),
            next=last if last < read.last_message else None,
        )
    )


def _session(row: store.SessionRow) -> Session:
    return Session(
        id=row.id, agent=row.agent, title=row.title, created_at=row.created_at, cursor=str(row.settled)
    )


def _parse_place(text: str | None) -> tuple[dt.datetime, UUID] | None:
    if text is None:
        return None
    moment, _, session_id = text.partition("~")
    try:
        # A plus sign that was not escaped in the query arrives as a space.
        when = dt.datetime.fromisoformat(moment.replace(" ", "+"))
        if when.tzinfo is None:
            raise ValueError(moment)
        return when, UUID(session_id)
    except ValueError:
        reason = "is not what `next` gave"
        raise InvalidRequest(
            f"query.before: {reason}", errors=(FieldError("query.before", reason),)
        ) from None


OPERATIONS = (put_session, list_sessions, get_session, list_messages)
