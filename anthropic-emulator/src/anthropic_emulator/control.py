"""`/_emulator/*`: how tests arm faults, move time, and see what was sent."""

from typing import TypeVar

import msgspec
from aiohttp import web

from anthropic_emulator.directives import parse_fault
from anthropic_emulator.errors import ApiError, invalid
from anthropic_emulator.faults import FaultRule, build
from anthropic_emulator.state import STATE

_DEFAULT_LIMIT = 50
T = TypeVar("T")


class _Advance(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_emulator/clock`: go `advance_s` seconds forward; 0 only reads."""

    advance_s: float = 0.0


def reply(value: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _decode(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise invalid(f"emulator: {error}") from error


async def add_fault(request: web.Request) -> web.Response:
    """Arm a fault for the next requests that match."""
    rule = await _decode(request, FaultRule)
    build(parse_fault(rule.fault))
    request.app[STATE].faults.rules.append(rule)
    return reply(rule, 201)


async def list_faults(request: web.Request) -> web.Response:
    """Show the armed faults."""
    return reply({"faults": request.app[STATE].faults.rules})


async def clear_faults(request: web.Request) -> web.Response:
    """Disarm all faults and forget how often directives fired."""
    request.app[STATE].faults.clear()
    return web.Response(status=204)


async def show_gate(request: web.Request) -> web.Response:
    """Say how many answers wait at a gate."""
    return reply({"waiting": request.app[STATE].gates.waiting(request.match_info["name"])})


async def open_gate(request: web.Request) -> web.Response:
    """Let the answers go on that wait at a gate, and whoever comes to it later."""
    return reply({"waited": request.app[STATE].gates.open(request.match_info["name"])})


async def requests(request: web.Request) -> web.Response:
    """Show the last requests, oldest first; `?limit=N`."""
    try:
        limit = int(request.query.get("limit", str(_DEFAULT_LIMIT)))
    except ValueError as error:
        raise invalid("limit: Input should be a valid integer") from error
    return reply({"requests": request.app[STATE].ledger.latest(limit)})


async def stats(request: web.Request) -> web.Response:
    """Show sums by model, with the cost in millionths of a US dollar."""
    state = request.app[STATE]
    return reply({**state.ledger.stats(), "open_streams": state.open_streams})


async def clock(request: web.Request) -> web.Response:
    """Advance the clock of cache and limits."""
    state = request.app[STATE]
    change = await _decode(request, _Advance)
    if change.advance_s < 0:
        raise ApiError(400, "advance_s: Input should be greater than or equal to 0")
    state.clock.advance(change.advance_s)
    return reply({"offset_s": state.clock.offset, "now": state.clock.now().isoformat()})


async def reset(request: web.Request) -> web.Response:
    """Forget everything."""
    request.app[STATE].reset()
    return web.Response(status=204)


async def healthz(_: web.Request) -> web.Response:
    """Say that the server answers."""
    return reply({"status": "ok"})


ROUTES = (
    web.post("/_emulator/faults", add_fault),
    web.get("/_emulator/faults", list_faults),
    web.delete("/_emulator/faults", clear_faults),
    web.get("/_emulator/gates/{name}", show_gate),
    web.post("/_emulator/gates/{name}", open_gate),
    web.get("/_emulator/requests", requests),
    web.get("/_emulator/stats", stats),
    web.post("/_emulator/clock", clock),
    web.post("/_emulator/reset", reset),
    web.get("/_emulator/healthz", healthz),
)
