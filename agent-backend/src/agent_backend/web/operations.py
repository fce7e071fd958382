"""Endpoints as data: each is declared once, and the routes and the OpenAPI document both come from it.

    @operation("PUT", "/v1/sessions/{session_id}", body=SessionPut, summary=..., tag="sessions",
               replies={200: Session, 201: Session}, problems=(404, 409))
    async def put_session(call: Call[SessionPut, None]) -> Response:
        ...
        return reply(session, 201)

    OPERATIONS = (put_session, ...)

Before the handler runs, the token is checked, the query and the body are read and validated, in this
order. Handlers raise the errors of `agent_backend.errors`; `Operation.serve` is the one place that catches.
Path parameters whose name ends in `_id` are UUIDs.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, Required, TypeAlias, TypedDict, TypeVar, Unpack, overload
from uuid import UUID, uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from agent_backend.auth import Principal, bearer
from agent_backend.errors import (
    ExpiredToken,
    FieldError,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    Unauthorized,
)
from agent_backend.telemetry import Log, metrics
from agent_backend.turns.committer import CONNECTION_TROUBLE
from agent_backend.web.danger import danger
from agent_backend.web.limits import Limit
from agent_backend.web.problems import Broken, MethodNotAllowed, UpgradeRequired, respond, translate
from agent_backend.web.requests import (
    ClientGone,
    Held,
    NoRoom,
    TooLargeToDrain,
    clean_text,
    decode_json,
    decode_query,
    header,
    read_body,
    require_json,
)
from agent_backend.web.services import Services

Method: TypeAlias = Literal["GET", "PUT", "POST", "DELETE"]
BodyT = TypeVar("BodyT")
QueryT = TypeVar("QueryT")
B = TypeVar("B")
Q = TypeVar("Q")

SUBPROTOCOL_TOKEN = "bearer."  # noqa: S105 - the prefix, not a token
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499

log = Log("http")
_encode = msgspec.json.Encoder().encode


class EventStream(msgspec.Struct, frozen=True):
    """A text/event-stream reply: when it is sent, and the type of one event's data."""

    description: str
    item: Any
    status: int = 200


class About(TypedDict, total=False):
    """What a declaration may say beside method, path, body and query."""

    summary: str
    description: str
    tag: str
    replies: Mapping[int, Any]
    """Status -> type of the JSON body, None for no body."""
    stream: EventStream
    archive: str
    """Describes a reply of 200 that is a zip."""
    problems: Sequence[int]
    """Statuses beside those that follow from the declaration (401, 422, 413, ...)."""
    auth: bool
    max_body: int
    """Bytes; the setting MAX_BODY_BYTES if not given."""
    limit: Limit
    """What it counts as, for its user; if not given, GET `reads`, everything else `writes`."""
    cost: float
    """How many of it; 1 if not given."""
    strict_text: bool
    """False: control characters in strings of the body are the handler's business."""


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(_encode(value), status, headers, "application/json")


class _Exchange:
    """What HTTP calls and WebSocket calls have in common."""

    __slots__ = ("_principal", "request_id", "scope", "services")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.services: Services = scope["state"]["services"]
        self.request_id = _request_id(scope)
        self._principal: Principal | None = None

    @property
    def principal(self) -> Principal:
        """Who asks; only where the operation is declared with `auth`."""
        assert self._principal is not None, "declared with auth=False"
        return self._principal

    @property
    def user_id(self) -> UUID:
        """The asking user's id."""
        return self.principal.user_id

    def header(self, name: bytes) -> str | None:
        """Return a request header by its lower-case name."""
        return header(self.scope, name)

    def bearer(self) -> str:
        """Return the token of the one Authorization header. Raises Unauthorized."""
        given = [value for name, value in self.scope["headers"] if name == b"authorization"]
        if len(given) > 1:
            # A proxy may have looked at the other one.
            raise Unauthorized("There is more than one Authorization header.")
        return bearer(given[0].decode("latin-1") if given else None)

    async def admit(self, token: str, limit: Limit, cost: float = 1.0) -> None:
        """Check the token and remember whom it names; what is refused keeps nobody awake.

        Raises Unauthorized, Forbidden, Unavailable, TooManyRequests.
        """
        services = self.services
        principal = services.authenticator.known(token) or await self.check(token)
        services.limits.take(limit, principal.user_id, cost)
        services.limits.begin(principal.user_id)
        self._principal = principal
        self.scope["user_id"] = principal.user_id
        await services.begin()

    async def check(self, token: str) -> Principal:
        """Check a token that is not known; its address pays for it. Raises as `admit`."""
        limits = self.services.limits
        limits.meet(self.scope)
        try:
            return await self.services.authenticator.authenticate(token)
        except ExpiredToken:
            raise
        except Unauthorized:
            limits.mistrust(self.scope)
            raise

    def leave(self) -> None:
        """End what `admit` began, if it did."""
        if self._principal is not None:
            self.services.limits.end(self._principal.user_id)
            self.services.end()


class Call(_Exchange, Generic[BodyT, QueryT]):
    """One request, checked: its user, its body and query as declared, the process's services."""

    __slots__ = ("_receive", "body", "query", "said")

    body: BodyT
    query: QueryT

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope)
        self._receive = receive
        self.said: str | None = None
        """A user's message this request brings: refused, it is looked at for red flags (`web/danger`)."""

    @property
    def request(self) -> Request:
        """The request as Starlette sees it; its body has been read."""
        return Request(self.scope, self._receive)

    def uuid(self, name: str) -> UUID:
        """Return a path parameter. Raises InvalidRequest unless it is a UUID in canonical form."""
        text: str = self.scope["path_params"][name]
        try:
            value = UUID(text)
        except ValueError:
            value = None
        if value is None or str(value) != text.lower():
            reason = "is not a UUID"
            raise InvalidRequest(f"path.{name}: {reason}", errors=(FieldError(f"path.{name}", reason),))
        return value

    def path(self, name: str) -> str:
        """Return a path parameter as text. Raises InvalidRequest on control characters."""
        return clean_text(f"path.{name}", self.scope["path_params"][name], 200)

    def accepts_events(self) -> bool:
        """Tell whether the client asks for text/event-stream."""
        return "text/event-stream" in (self.header(b"accept") or "")


class SocketCall(_Exchange):
    """One WebSocket, its token checked, not yet accepted."""

    __slots__ = ("websocket",)

    def __init__(self, websocket: WebSocket) -> None:
        super().__init__(websocket.scope)
        self.websocket = websocket

    async def accept(self) -> None:
        """Accept, choosing the first subprotocol that is not the token: browsers need one to be chosen."""
        offered: list[str] = self.scope.get("subprotocols", [])
        chosen = next((each for each in offered if not each.startswith(SUBPROTOCOL_TOKEN)), None)
        await self.websocket.accept(subprotocol=chosen)

    def token(self) -> str:
        """Return the token of the Authorization header or the subprotocol. Raises Unauthorized."""
        offered: list[str] = self.scope.get("subprotocols", [])
        given = {
            each.removeprefix(SUBPROTOCOL_TOKEN) for each in offered if each.startswith(SUBPROTOCOL_TOKEN)
        }
        if not given or self.header(b"authorization") is not None:
            given.add(self.bearer())
        if len(given) > 1:
            raise Unauthorized("There is more than one token.")
        return given.pop()


Handler: TypeAlias = Callable[[Call[Any, Any]], Awaitable[Response]]
SocketHandler: TypeAlias = Callable[[SocketCall], Awaitable[None]]


@dataclass(kw_only=True)
class Operation:
    """A declared HTTP endpoint."""

    method: Method
    path: str
    handler: Handler
    body: Any = None
    query: Any = None
    about: About

    @property
    def name(self) -> str:
        """The handler's name: the operationId, and the metrics' and logs' `operation`."""
        return getattr(self.handler, "__name__", "operation")

    @property
    def auth(self) -> bool:
        """Whether a token is needed."""
        return self.about.get("auth", True)

    @cached_property
    def limit(self) -> Limit:
        """What it counts as, for its user."""
        return self.about.get("limit", "reads" if self.method == "GET" else "writes")

    def _streams(self, call: Call[Any, Any]) -> bool:
        return "stream" in self.about and ("replies" not in self.about or call.accepts_events())

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[Any]:
        """The body's decoder, made at the first use: making all of them would delay the boot."""
        return msgspec.json.Decoder(self.body)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every exception ends here."""
        call: Call[Any, Any] = Call(scope, receive)
        sending = _Sending(send)
        try:
            response = await self._run(call, receive)
            _finish(response, call.request_id)
            await response(scope, receive, sending)
        except ClientGone:
            sending.status = _CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - the boundary
            await self._fail(call, error, receive, sending)
        finally:
            call.leave()
        metrics.http_requests[self.name, sending.status or _CLIENT_GONE] += 1

    async def _run(self, call: Call[Any, Any], receive: Receive) -> Response:
        if self.auth:
            await call.admit(call.bearer(), self.limit, self.about.get("cost", 1.0))
            if self._streams(call):
                call.services.limits.admit_stream(call.scope)
        if self.query is not None:
            call.query = decode_query(call.scope["query_string"], self.query)
        if self.body is None:
            return await self._handle(call)
        require_json(call.scope)
        limit = self.about.get("max_body") or call.services.settings.max_body_bytes
        with Held(call.services.room, call.scope.get("user_id")) as held:
            body = await read_body(call.scope, receive, limit, held)
            call.body = decode_json(body, self.decoder, strict_text=self.about.get("strict_text", True))
            return await self._handle(call)

    async def _handle(self, call: Call[Any, Any]) -> Response:
        try:
            return await self.handler(call)
        except CONNECTION_TROUBLE:
            # After a freeze or a restart of Postgres the pool's connections are dead and nobody knows. Every
            # operation may be sent again, so we do it ourselves, once, over a new connection.
            return await self.handler(call)

    async def _fail(
        self, call: Call[Any, Any], error: Exception, receive: Receive, sending: _Sending
    ) -> None:
        known = translate(error)
        _log_failure(self.name, call.request_id, known.status, known.code, error)
        if sending.status:
            # The client has seen a beginning; only a broken connection tells it that this is not the end.
            raise error
        if call.said is not None:
            known.safety = await danger(call.services, call.user_id, call.said, known, call.header)
        response = respond(known, call.request_id)
        if isinstance(known, (TooLargeToDrain, RequestTimeout, NoRoom)):
            response.raw_headers.append((b"connection", b"close"))
        _finish(response, call.request_id)
        await response(call.scope, receive, sending)


class _Sending:
    """Passes messages on and remembers the status that went out."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"fly-request-id") or header(scope, b"x-request-id")
    return given if given and _REQUEST_ID.fullmatch(given) else uuid4().hex


def _finish(response: Response, request_id: str) -> None:
    headers = response.raw_headers
    headers.append((b"x-request-id", request_id.encode("ascii")))
    if not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))


def _log_failure(operation: str, request_id: str, status: int, code: str, error: BaseException) -> None:
    if status == Broken.status:
        log.error("request_failed", error=error, operation=operation, request_id=request_id, status=status)
    elif status > Broken.status:
        log.warning("request_failed", error=error, operation=operation, request_id=request_id, status=status)
    else:
        log.info("request_refused", operation=operation, request_id=request_id, status=status, code=code)


# --- declaring --------------------------------------------------------------------------------------


@overload
def operation(
    method: Method, path: str, *, body: None = None, query: None = None, **about: Unpack[About]
) -> Callable[[Callable[[Call[None, None]], Awaitable[Response]]], Operation]: ...
@overload
def operation(
    method: Method, path: str, *, body: type[B], query: None = None, **about: Unpack[About]
) -> Callable[[Callable[[Call[B, None]], Awaitable[Response]]], Operation]: ...
@overload
def operation(
    method: Method, path: str, *, body: None = None, query: type[Q], **about: Unpack[About]
) -> Callable[[Callable[[Call[None, Q]], Awaitable[Response]]], Operation]: ...
@overload
def operation(
    method: Method, path: str, *, body: type[B], query: type[Q], **about: Unpack[About]
) -> Callable[[Callable[[Call[B, Q]], Awaitable[Response]]], Operation]: ...
def operation(
    method: Method, path: str, *, body: Any = None, query: Any = None, **about: Unpack[About]
) -> Callable[[Any], Operation]:
    """Declare the decorated handler as the endpoint `method path`."""

    def declare(handler: Handler) -> Operation:
        return Operation(method=method, path=path, handler=handler, body=body, query=query, about=about)

    return declare


class AboutSocket(TypedDict, total=False):
    """What a WebSocket's declaration may say."""

    summary: str
    description: str
    tag: str
    client: Required[Any]
    """Type of the frames clients send."""
    server: Required[Any]
    """Type of the frames the server sends."""


@dataclass(kw_only=True)
class SocketOperation:
    """A declared WebSocket endpoint."""

    path: str
    handler: SocketHandler
    about: AboutSocket

    @property
    def name(self) -> str:
        """The handler's name."""
        return getattr(self.handler, "__name__", "socket")

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one socket: refused ones get a problem document instead of the upgrade."""
        call = SocketCall(websocket)
        status = 101
        try:
            await call.admit(call.token(), "reads")
            call.services.limits.admit_stream(call.scope)
            await self.handler(call)
        except WebSocketDisconnect:
            pass
        except Exception as error:  # noqa: BLE001 - the boundary
            known = translate(error)
            status = known.status
            _log_failure(self.name, call.request_id, status, known.code, error)
            await _refuse_or_close(websocket, known, call.request_id)
        finally:
            call.leave()
        metrics.http_requests[self.name, status] += 1


async def _refuse_or_close(websocket: WebSocket, known: Any, request_id: str) -> None:
    if websocket.application_state is WebSocketState.CONNECTING:
        response = respond(known, request_id)
        _finish(response, request_id)
        await websocket.send_denial_response(response)
    elif websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(code=1011 if known.status != Unauthorized.status else 1008)


def socket(path: str, **about: Unpack[AboutSocket]) -> Callable[[SocketHandler], SocketOperation]:
    """Declare the decorated handler as the WebSocket endpoint `path`."""

    def declare(handler: SocketHandler) -> SocketOperation:
        return SocketOperation(path=path, handler=handler, about=about)

    return declare


# --- routing ----------------------------------------------------------------------------------------


class _Endpoint:
    """All methods of one path as an ASGI app."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._by_method = {each.method: each for each in operations}
        self._serving: dict[str, Operation] = dict(self._by_method)
        get = self._by_method.get("GET")
        if get is not None and "stream" not in get.about:
            self._serving["HEAD"] = get
        self._allowed = ", ".join(sorted({*self._serving, "OPTIONS"}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = self._serving.get(scope["method"])
        if chosen is not None:
            await chosen.serve(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": self._allowed})
            _finish(response, _request_id(scope))
            await response(scope, receive, send)
        else:
            await _answer(MethodNotAllowed(self._allowed), scope, receive, send)


class _SocketOnly:
    """What plain HTTP gets at a WebSocket's path; a class, because Starlette wraps functions."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(UpgradeRequired("This path speaks WebSocket only."), scope, receive, send)


async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 404 as a problem document: the router's default."""
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await _refuse_or_close(websocket, NotFound("There is nothing here."), _request_id(scope))
    else:
        await _answer(NotFound("There is nothing here."), scope, receive, send)


async def _answer(error: Any, scope: Scope, receive: Receive, send: Send) -> None:
    request_id = _request_id(scope)
    metrics.http_requests["none", error.status] += 1
    response = respond(error, request_id)
    _finish(response, request_id)
    await response(scope, receive, send)


def routes(operations: Sequence[Operation], sockets: Sequence[SocketOperation] = ()) -> list[BaseRoute]:
    """Return one route per path; the first path that matches wins, so the busiest go first."""
    by_path: dict[str, list[Operation]] = {}
    for each in operations:
        by_path.setdefault(each.path, []).append(each)
    return [
        *(Route(path, _Endpoint(group), name=group[0].name) for path, group in by_path.items()),
        *(WebSocketRoute(each.path, each.serve, name=each.name) for each in sockets),
        *(Route(each.path, _SocketOnly()) for each in sockets),
    ]
