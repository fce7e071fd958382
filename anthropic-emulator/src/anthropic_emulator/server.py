"""The API: `POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

import msgspec
from aiohttp import web

from anthropic_emulator import brain, cache, control, directives, events, faults, script, stream
from anthropic_emulator.clock import Clock
from anthropic_emulator.errors import ApiError, invalid
from anthropic_emulator.ledger import Bill, Record, public_headers
from anthropic_emulator.models import MODELS, Model
from anthropic_emulator.request import MessagesRequest
from anthropic_emulator.settings import Settings
from anthropic_emulator.signing import conversation_digest, last_signature, sign
from anthropic_emulator.state import STATE, State
from anthropic_emulator.validation import VERSIONS, decode, validate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ORGANIZATION: Final = "00000000-0000-4000-8000-000000000000"
_BEFORE_RESET: Final = 0.02
"""Seconds between the last bytes and an RST, so that the peer has read what it was sent."""


def create_app(settings: Settings | None = None, clock: Clock | None = None) -> web.Application:
    """Build the application; `clock` serves cache lifetimes, rate limits and the date."""
    chosen = settings or Settings()
    app = web.Application(middlewares=[_errors], client_max_size=chosen.max_body)
    app[STATE] = State(chosen, clock)
    app.add_routes(
        [
            web.post("/v1/messages", _messages),
            web.post("/v1/messages/count_tokens", _count_tokens),
            web.get("/v1/models", _models),
            web.get("/v1/models/{id}", _model),
            *control.ROUTES,
        ]
    )
    return app


class _Call(msgspec.Struct, kw_only=True):
    """One request on its way through the server."""

    state: State
    request_id: str
    api_key: str
    record: Record
    bill: Bill | None = None
    fault: faults.Fault | None = None
    stamped: bool = False
    gate: stream.Gate | None = None

    def headers(self) -> dict[str, str]:
        """Response headers of the API."""
        return {
            "request-id": self.request_id,
            "anthropic-organization-id": _ORGANIZATION,
            **self.state.limits.headers(self.api_key),
        }


_CALL: Final = web.RequestKey("call", _Call)
_REQUEST_ID: Final = web.RequestKey("request_id", str)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every failure the API's error body; a fault that broke the connection passes."""
    state = request.app[STATE]
    request[_REQUEST_ID] = request_id = state.ids.new("req_")
    try:
        return await handler(request)
    except ApiError as error:
        return _refuse(request, error)
    except web.HTTPRequestEntityTooLarge:
        return _refuse(request, ApiError(413, "Request exceeds the maximum size"))
    except web.HTTPException as error:
        status = 404 if error.status == 405 else error.status
        return web.Response(
            body=ApiError(status, "Not found" if status == 404 else error.reason).body(request_id),
            status=error.status,
            content_type="application/json",
        )


def _refuse(request: web.Request, error: ApiError) -> web.Response:
    state = request.app[STATE]
    call = request.get(_CALL)
    headers = {"request-id": request[_REQUEST_ID], **error.headers}
    state.ledger.errors += 1
    if call is not None:
        headers = {**call.headers(), **headers}
        call.record.status = error.status
        call.record.outcome = "fault" if call.fault is not None else "error"
        call.record.error = error.message
    return web.Response(
        body=error.body(request[_REQUEST_ID]),
        status=error.status,
        headers=headers,
        content_type="application/json",
    )


async def _admit(request: web.Request) -> tuple[_Call, bytes]:
    """Authenticate, read the body, and note the request."""
    state = request.app[STATE]
    api_key = _api_key(request.headers, state.settings.api_key)
    if (request.content_length or 0) > state.settings.max_body:
        raise ApiError(413, "Request exceeds the maximum size")
    body = await request.read()
    record = Record(
        id=request[_REQUEST_ID],
        time=state.clock.now().isoformat(),
        path=request.path,
        headers=public_headers(request.headers),
        body=body,
    )
    call = _Call(state=state, request_id=record.id, api_key=api_key, record=state.ledger.open(record))
    request[_CALL] = call
    return call, body


def _api_key(headers: Mapping[str, str], only: str | None) -> str:
    key = headers.get("x-api-key") or ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not key and scheme.lower() == "bearer":
        key = token.strip()
    if not key:
        raise ApiError(401, "x-api-key header is required")
    if only is not None and key != only:
        raise ApiError(401, "invalid x-api-key")
    return key


def _version(request: web.Request) -> str:
    version = request.headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version not in VERSIONS:
        raise invalid(f'anthropic-version: "{version}" is not a valid version')
    return version


async def _count_tokens(request: web.Request) -> web.StreamResponse:
    call, body = await _admit(request)
    parsed = validate(decode(body), _version(request), counting=True)
    call.record.status, call.record.outcome = 200, "complete"
    return web.Response(
        body=msgspec.json.encode({"input_tokens": cache.count(parsed)}),
        headers=call.headers(),
        content_type="application/json",
    )


def _model_info(model: Model) -> dict[str, object]:
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "max_input_tokens": model.context,
        "max_tokens": model.max_output,
    }


async def _models(request: web.Request) -> web.StreamResponse:
    _api_key(request.headers, request.app[STATE].settings.api_key)
    found = [_model_info(model) for model in MODELS.values()]
    return control.reply(
        {"data": found, "has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}
    )


async def _model(request: web.Request) -> web.StreamResponse:
    _api_key(request.headers, request.app[STATE].settings.api_key)
    name = request.match_info["id"]
    if name not in MODELS:
        raise ApiError(404, f"model: {name}")
    return control.reply(_model_info(MODELS[name]))


async def _messages(request: web.Request) -> web.StreamResponse:
    call, body = await _admit(request)
    version = _version(request)
    early = request.headers.get("x-emulator-fault") or call.state.faults.from_rules(body)
    if early is not None:
        await _fail_early(call, early)
    call.state.limits.admit(call.api_key)
    parsed = validate(decode(body), version)
    conversation = brain.read(parsed, call.state.clock.today())
    played = script.merge(_header_script(request), conversation.directive)
    if early is None:
        late = call.state.faults.from_script(played, call.api_key, conversation.step)
        if late is not None:
            await _fail_early(call, late)
    message = _compose(call, parsed, conversation, played)
    if call.fault is not None and call.fault.name == "disconnect":
        _hang_up(request, call)
    call.stamped = played.stamp
    if played.gate is not None:
        call.gate = stream.Gate(call.state.gates, played.gate, played.gate_after)
    settings = call.state.settings
    timing = stream.Timing(
        ttft=(settings.ttft_ms if played.ttft_ms is None else played.ttft_ms) / 1000,
        delay=(settings.delay_ms if played.delay_ms is None else played.delay_ms) / 1000,
        jitter=settings.jitter if played.delay_ms is None else 0.0,
        seed=settings.seed or 0,
    )
    send = _stream if parsed.stream else _whole
    return await send(request, call, message, timing)


def _header_script(request: web.Request) -> directives.Script | None:
    text = request.headers.get("x-emulator-script")
    if text is None:
        return None
    try:
        return directives.parse_script(msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        raise invalid(f"x-emulator-script: {error}") from error


async def _fail_early(call: _Call, text: str) -> None:
    """Commit a fault that comes before the response, or keep one that comes in it."""
    fault = call.fault = faults.build(directives.parse_fault(text))
    call.record.fault = text
    error = fault.error()
    if error is not None:
        raise error
    if fault.name == "delay":
        await asyncio.sleep(fault.delay_ms / 1000 if fault.seconds is None else fault.seconds)


def _hang_up(request: web.Request, call: _Call) -> NoReturn:
    """Reset the connection before any byte of an answer that was written."""
    call.record.outcome = "fault"
    assert request.transport is not None
    stream.reset(request.transport)
    raise ConnectionResetError


def _compose(
    call: _Call, parsed: MessagesRequest, conversation: brain.Conversation, played: directives.Script
) -> events.Message:
    """Answer, bill, and write the answer's figures into the record."""
    state = call.state
    _fits_context(parsed)
    reply = script.answer(parsed, conversation, played, gullible=state.settings.gullible)
    call.record.obeyed = reply.obeyed
    paid = state.cache.account(call.api_key, parsed)
    thought = "" if reply.thinking is None or parsed.thinking.omitted else reply.thinking.text
    signature = "" if reply.thinking is None else _sign(parsed, thought)
    message = events.compose(parsed, reply, paid, signature, state.ids)
    call.bill = state.ledger.bill(call.record, parsed.model, paid)
    if not parsed.stream or (call.fault is not None and call.fault.unheard):
        call.bill.written(message.output_tokens)
    state.limits.spend(call.api_key, paid, message.output_tokens)
    call.record.usage = events.usage(message)
    call.record.stop_reason = message.stop_reason
    return message


def _sign(parsed: MessagesRequest, thought: str) -> str:
    place = conversation_digest(parsed.system, parsed.tools, parsed.messages)
    return sign(parsed.model.id, thought, place, last_signature(parsed.messages))


def _fits_context(parsed: MessagesRequest) -> None:
    tokens = cache.count(parsed)
    if tokens > parsed.model.context:
        raise invalid(f"prompt is too long: {tokens} tokens > {parsed.model.context} maximum")


def _in_stream(call: _Call) -> faults.Fault | None:
    return call.fault if call.fault is not None and call.fault.in_stream else None


def _overloaded(call: _Call) -> bytes:
    return ApiError(529, "Overloaded").body(call.request_id)


async def _stream(
    request: web.Request, call: _Call, message: events.Message, timing: stream.Timing
) -> web.StreamResponse:
    """Send the events of a message, each at its time."""
    fault = _in_stream(call)
    beats = list(events.beats(message))
    steps, end = stream.plan(events.opening(message), beats, timing, fault, _overloaded(call))
    headers = {"cache-control": "no-cache", "content-type": "text/event-stream; charset=utf-8"}
    return await _pump(
        request, call, steps, end, {**call.headers(), **headers}, (message.output_tokens, len(beats) + 1)
    )


async def _whole(
    request: web.Request, call: _Call, message: events.Message, timing: stream.Timing
) -> web.StreamResponse:
    """Send a message in one piece, when its last delta would have been sent."""
    fault = _in_stream(call)
    if fault is not None and fault.name == "overloaded":
        raise ApiError(529, "Overloaded")
    deltas = sum(len(block.deltas) for block in message.blocks)
    delay = fault.delay_ms / 1000 if fault is not None and fault.name == "slow" else timing.delay
    pause = timing.ttft + delay * deltas
    document = events.document(message)
    end: stream.End = "eof"
    if fault is not None and fault.name == "stall":
        pause += stream.FOREVER if fault.seconds is None else fault.seconds
    if fault is not None and fault.name in ("truncated", "malformed", "cut", "reset"):
        document = document[: len(document) // 2]
        end = "cut" if fault.name == "cut" else "reset" if fault.name == "reset" else "eof"
    steps = [stream.Step(pause, document)]
    headers = {**call.headers(), "content-type": "application/json"}
    return await _pump(request, call, steps, end, headers, (message.output_tokens, 1))


async def _pump(
    request: web.Request,
    call: _Call,
    steps: list[stream.Step],
    end: stream.End,
    headers: Mapping[str, str],
    whole: tuple[int, int],
) -> web.StreamResponse:
    """Send steps, then end as planned; the record says how it went, the bill how far the answer came.

    `whole`: tokens and steps of the answer if nothing goes wrong.
    """
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        # Sends the headers; from here on the pump writes to the transport itself.
        await response.write(b"")
    except ConnectionResetError:
        call.record.outcome = "gone"
        return response
    transport = request.transport
    if transport is None:
        call.record.outcome = "gone"
        return response
    call.state.open_streams += 1
    call.record.status = 200
    try:
        coalesce = call.fault is None or call.fault.name != "split"
        assert call.bill is not None, "composing begins the bill"
        meter = stream.Meter(whole[0], max(whole[1], len(steps)), call.bill.written)
        pump = stream.Pump(
            response, transport, coalesce=coalesce, stamped=call.stamped, meter=meter, gate=call.gate
        )
        stayed = await pump.run(steps)
    finally:
        call.state.open_streams -= 1
    call.record.outcome = "complete" if call.fault is None else "fault"
    if not stayed:
        call.record.outcome = "gone"
    elif end == "reset":
        await asyncio.sleep(_BEFORE_RESET)
        stream.reset(transport)
    elif end == "cut":
        transport.close()
    # aiohttp sends the last chunk, or notices that the connection is gone.
    return response
