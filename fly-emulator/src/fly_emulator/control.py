"""`/_emulator/*` beside the Machines API: what only an emulator can be asked."""

from __future__ import annotations

import msgspec
from aiohttp import web

from fly_emulator.edge.proxy import Edge
from fly_emulator.errors import StateError
from fly_emulator.machines.api_context import body, reply


class Cut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /_emulator/cut`: a share of the clients' connections ends at a random byte; 0 ends it."""

    probability: float
    max_bytes: int = 4096
    seed: int = 0


def control_routes(edge: Edge) -> list[web.RouteDef]:
    """Return the routes of one edge."""

    async def cut(request: web.Request) -> web.Response:
        try:
            wanted = msgspec.convert(await body(request), Cut)
            if wanted.probability:
                edge.faults.cut(wanted.probability, wanted.max_bytes, wanted.seed)
            else:
                edge.faults.off()
        except ValueError as error:
            raise StateError(f"invalid_argument: {error}", status=400) from error
        return web.Response(status=204)

    async def status(_request: web.Request) -> web.Response:
        return reply(edge.status())

    return [web.post("/_emulator/cut", cut), web.get("/_emulator/status", status)]
