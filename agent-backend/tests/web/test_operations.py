from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
import pytest
import websockets
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Scope

from agent_backend.errors import Conflict, FieldError, TooManyRequests, Unavailable
from agent_backend.settings import Settings
from agent_backend.telemetry import metrics
from agent_backend.web.operations import Call, SocketCall, operation, reply, socket

from .serving import app_of, headers_for, serving, settings_for

ID = "0199ab12-0000-7000-8000-000000000001"
PATH = f"/notes/{ID}"


class Note(msgspec.Struct, forbid_unknown_fields=True):
    content: str
    stars: int = 0


class Paging(msgspec.Struct, forbid_unknown_fields=True):
    limit: int = 5
    after: str | None = None


@operation("PUT", "/notes/{note_id}", body=Note, query=Paging, replies={200: Note}, max_body=2000)
async def put_note(call: Call[Note, Paging]) -> Response:
    return reply(
        {
            "id": call.uuid("note_id"),
            "user": call.user_id,
            "content": call.body.content,
            "limit": call.query.limit,
            "after": call.query.after,
        }
    )


@operation("GET", "/notes/{note_id}", auth=False, replies={200: None})
async def get_note(call: Call[None, None]) -> Response:
    return reply({"id": call.uuid("note_id"), "sse": call.accepts_events()})


_RAISED: dict[str, Exception] = {
    "conflict": Conflict("no", errors=(FieldError("$.content", "differs"),)),
    "busy": TooManyRequests("slow down", retry_after=7.2),
    "away": Unavailable("later"),
    "os": ConnectionRefusedError("connect to 10.0.0.1 refused"),
    "timeout": TimeoutError(),
    "lock": asyncpg.LockNotAvailableError("canceling statement due to lock timeout"),
    "shutdown": asyncpg.AdminShutdownError("terminating connection"),
    "closed": asyncpg.InterfaceError("connection is closed"),
    "misuse": asyncpg.InterfaceError("the server expects 2 arguments for this query, 1 was passed"),
    "data": asyncpg.CharacterNotInRepertoireError("invalid byte sequence"),
    "bug": ZeroDivisionError("the password is hunter2"),
}


@operation("GET", "/raise/{what}", auth=False)
async def raise_it(call: Call[None, None]) -> Response:
    raise _RAISED[call.path("what")]


@operation("GET", "/stream", auth=False)
async def break_off(_call: Call[None, None]) -> Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise ZeroDivisionError

    return StreamingResponse(body(), headers={"Cache-Control": "no-transform"})


@socket("/socket", client=Note, server=Note)
async def echo(call: SocketCall) -> None:
    await call.accept()
    while True:
        text = await call.websocket.receive_text()
        if text == "break":
            raise ZeroDivisionError
        await call.websocket.send_text(f"{call.user_id} {text}")


OPERATIONS = (put_note, get_note, raise_it, break_off)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


@pytest.fixture
async def url(settings: Settings) -> AsyncGenerator[str]:
    async with serving(app_of(settings, OPERATIONS, (echo,)), settings) as base:
        yield base


@pytest.fixture
async def http(url: str, settings: Settings) -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers=headers_for(settings)) as session:
        yield session


async def problem_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    problem = json.loads(await response.read())
    assert problem["status"] == response.status
    assert problem["type"] == f"urn:myhealth:problem:{problem['code']}"
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert response.headers["Cache-Control"] == "no-store"
    return problem


async def test_a_request_arrives_checked_and_typed(http: aiohttp.ClientSession) -> None:
    async with http.put(f"{PATH}?limit=7", json={"content": "Grüße\n\t🙂"}) as response:
        answer = await response.json()
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers
    assert answer["id"] == ID
    assert answer["content"] == "Grüße\n\t🙂"
    assert (answer["limit"], answer["after"]) == (7, None)


_JSON = {"Content-Type": "application/json"}
REFUSED = {
    "no body": (b"", _JSON, 400, "$"),
    "truncated": (b'{"content": "x', _JSON, 400, "$"),
    "trailing": (b'{"content": "x"} {}', _JSON, 400, "$"),
    "bom": (b'\xef\xbb\xbf{"content": "x"}', _JSON, 400, "$"),
    "not utf-8": (b'{"content": "\xff"}', _JSON, 400, "$"),
    "raw control": (b'{"content": "a\x01"}', _JSON, 400, "$"),
    "nul": (rb'{"content": "a\u0000b"}', _JSON, 422, "$.content"),
    "escape": (rb'{"content": "a\u001bb"}', _JSON, 422, "$.content"),
    "backspace": (rb'{"content": "a\bb"}', _JSON, 422, "$.content"),
    "delete": (b'{"content": "a\x7fb"}', _JSON, 422, "$.content"),
    "surrogate": (rb'{"content": "a\ud800b"}', _JSON, 422, "$.content"),
    "reversed pair": (rb'{"content": "\udc00\ud800"}', _JSON, 422, "$.content"),
    "type": (b'{"content": 1}', _JSON, 422, "$.content"),
    "range": (b'{"content": "x", "stars": 1e999}', _JSON, 422, "$.stars"),
    "missing": (b"{}", _JSON, 422, "$.content"),
    "unknown": (b'{"content": "x", "colour": 1}', _JSON, 422, "$.colour"),
    "not an object": (b"[]", _JSON, 422, "$"),
    "too large": (b'{"content": "' + b"x" * 2000 + b'"}', _JSON, 413, "$"),
    "no media type": (b'{"content": "x"}', {"Content-Type": ""}, 415, None),
    "compressed": (b"{}", {**_JSON, "Content-Encoding": "br"}, 415, None),
    "form": (b"content=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, None),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_body_is_refused_with_field_and_reason(case: str, http: aiohttp.ClientSession) -> None:
    body, headers, status, field = REFUSED[case]
    async with http.put(PATH, data=body, headers=headers) as response:
        problem = await problem_of(response)
    assert response.status == status, problem
    if field is not None:
        assert [each["field"] for each in problem["errors"]] == [field]
        assert problem["errors"][0]["reason"]


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("limit=many", 422, "query.limit"),
        ("limti=5", 422, "query.limti"),
        ("limit=1&limit=2", 422, "query.limit"),
        ("after=%00", 422, "query.after"),
        ("after=%ff", 400, "query"),
        ("&".join(f"a{n}=1" for n in range(60)), 400, "query"),
    ],
)
async def test_a_bad_query_is_refused_with_the_parameters_name(
    query: str, status: int, field: str, url: str, settings: Settings
) -> None:
    request = f"PUT {PATH}?{query} HTTP/1.1\r\nHost: x\r\n"
    answer = await raw(url, request, headers_for(settings), b'{"content": "x"}')
    assert answer.status == status
    assert answer.json["errors"][0]["field"] == field


@pytest.mark.parametrize(
    "given", ["x", ID[:-1], ID.replace("-", ""), "{" + ID + "}", f"urn:uuid:{ID}", "%00", "%F0%9F%99%82"]
)
async def test_an_id_that_is_no_uuid_is_named(given: str, url: str, settings: Settings) -> None:
    request = f"GET /notes/{given} HTTP/1.1\r\nHost: x\r\n"
    answer = await raw(url, request, headers_for(settings))
    assert answer.status == 422
    assert answer.json["errors"] == [{"field": "path.note_id", "reason": "is not a UUID"}]


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def raw(
    url: str, head: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """Send exactly this; read until the server closes."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [*(f"{name}: {value}" for name, value in (headers or {}).items()), "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    writer.write(head.encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return parsed(answer)


def parsed(answer: bytes) -> Answer:
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, content)


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(
    url: str, settings: Settings
) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    token = headers_for(settings)["Authorization"]
    writer.write(
        f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 900000000\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    answer = parsed(await reader.read())  # the server closes: nobody reads 900 MB to be polite
    writer.close()
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


async def test_a_chunked_body_is_cut_at_the_limit_and_the_connection_lives_on(
    http: aiohttp.ClientSession,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"content": "'
        for _ in range(100):
            yield b"x" * 1000

    async with http.put(PATH, data=chunks(), headers=_JSON) as response:
        assert response.status == 413
        assert response.headers.get("Connection") != "close"
    async with http.get(PATH) as response:
        assert response.status == 200


async def test_a_client_that_goes_away_while_sending_gets_no_answer_and_is_counted(
    settings: Settings,
) -> None:
    before = metrics.http_requests["put_note", 499]
    arriving: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    token = headers_for(settings)["Authorization"].encode()
    async with app_of(settings, OPERATIONS).lifespan_context(None) as state:
        scope: Scope = {
            "type": "http",
            "query_string": b"",
            "headers": [(b"authorization", token), (b"content-type", b"application/json")],
            "state": state,
        }
        await put_note.serve(scope, receive, send)
    assert sent == []
    assert metrics.http_requests["put_note", 499] == before + 1


@pytest.mark.parametrize(
    ("what", "status", "header"),
    [
        ("conflict", 409, {}),
        ("busy", 429, {"Retry-After": "8"}),
        ("away", 503, {"Retry-After": "1"}),
        ("os", 503, {"Retry-After": "1"}),
        ("timeout", 503, {"Retry-After": "1"}),
        ("lock", 503, {"Retry-After": "1"}),
        ("shutdown", 503, {"Retry-After": "1"}),
        ("closed", 503, {"Retry-After": "1"}),
        ("misuse", 500, {}),
        ("data", 422, {}),
        ("bug", 500, {}),
    ],
)
async def test_each_exception_becomes_its_problem_and_tells_no_secrets(
    what: str,
    status: int,
    header: dict[str, str],
    http: aiohttp.ClientSession,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with http.get(f"/raise/{what}", headers={"Fly-Request-Id": "01JX-fra"}) as response:
        problem = await problem_of(response)
    assert response.status == status
    assert {name: response.headers[name] for name in header} == header
    logged = capsys.readouterr().err
    assert problem["request_id"] == "01JX-fra"
    assert '"request_id":"01JX-fra"' in logged
    assert "hunter2" not in json.dumps(problem) + logged
    if what == "bug":
        assert '"error":"ZeroDivisionError"' in logged
        assert "raise_it" in logged


async def test_a_request_id_that_could_not_be_a_header_is_replaced(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get(PATH, headers={"X-Request-Id": "a" * 500}) as response:
        assert len(response.headers["X-Request-Id"]) == 32


async def test_a_failure_after_the_beginning_breaks_the_connection(http: aiohttp.ClientSession) -> None:
    async with http.get("/stream") as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-transform"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_nothing_without_a_token(url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
            async with http.put(PATH, data=b"not even JSON", headers=headers) as response:
                problem = await problem_of(response)
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert problem["code"] == "unauthorized"


async def test_other_methods_and_paths_are_answered_with_problems(http: aiohttp.ClientSession) -> None:
    async with http.delete(PATH) as response:
        assert (await problem_of(response))["code"] == "method_not_allowed"
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS, PUT"
    async with http.options(PATH) as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, PUT")
    async with http.head(PATH) as response:
        assert (response.status, await response.read()) == (200, b"")
    for path in ("/", "/nothing", f"{PATH}/", "/notes/"):
        async with http.get(path) as response:
            assert (await problem_of(response))["code"] == "not_found"
    async with http.get("/socket") as response:
        assert (await problem_of(response))["code"] == "upgrade_required"


async def test_requests_are_counted_by_operation_and_status(http: aiohttp.ClientSession) -> None:
    before = dict(metrics.http_requests)
    async with http.get(PATH):
        pass
    async with http.get("/notes/x"):
        pass
    assert metrics.http_requests["get_note", 200] == before.get(("get_note", 200), 0) + 1
    assert metrics.http_requests["get_note", 422] == before.get(("get_note", 422), 0) + 1


# --- sockets ----------------------------------------------------------------------------------------


async def test_a_socket_takes_its_token_from_the_header_or_the_subprotocol(
    url: str, settings: Settings
) -> None:
    address = url.replace("http", "ws") + "/socket"
    authorization = headers_for(settings)
    async with websockets.connect(address, additional_headers=authorization) as connection:
        await connection.send("hello")
        by_header = await connection.recv()
        assert connection.subprotocol is None
    protocols = [
        websockets.Subprotocol("bearer." + authorization["Authorization"].removeprefix("Bearer ")),
        websockets.Subprotocol("myhealth"),
    ]
    async with websockets.connect(address, subprotocols=protocols) as connection:
        await connection.send("hello")
        assert await connection.recv() == by_header
        assert connection.subprotocol == "myhealth"


async def test_a_socket_without_a_token_is_refused_with_a_problem(url: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url.replace("http", "ws") + "/socket")
    assert refused.value.response.status_code == 401
    assert msgspec.json.decode(refused.value.response.body or b"")["code"] == "unauthorized"


async def test_a_socket_at_an_unknown_path_is_refused_with_a_problem(url: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url.replace("http", "ws") + "/nothing")
    assert refused.value.response.status_code == 404


async def test_a_socket_whose_handler_breaks_is_closed_with_1011(url: str, settings: Settings) -> None:
    address = url.replace("http", "ws") + "/socket"
    async with websockets.connect(address, additional_headers=headers_for(settings)) as connection:
        await connection.send("break")
        with pytest.raises(websockets.ConnectionClosedError):
            await connection.recv()
        assert connection.close_code == 1011
