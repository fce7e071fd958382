"""`/_emulator/*` beside the Machines API: what only an emulator can be asked."""

from __future__ import annotations

from collections.abc import Callable

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


def control_routes(edge_of: Callable[[web.Request], Edge], prefix: str = "/_emulator") -> list[web.RouteDef]:
    """Return the routes below `prefix` of the edge that `edge_of` finds for a request."""

    async def cut(request: web.Request) -> web.Response:
        edge = edge_of(request)
        try:
            wanted = msgspec.convert(await body(request), Cut)
            if wanted.probability:
                edge.faults.cut(wanted.probability, wanted.max_bytes, wanted.seed)
            else:
                edge.faults.off()
        except ValueError as error:
            raise StateError(f"invalid_argument: {error}", status=400) from error
        return web.Response(status=204)

    async def status(request: web.Request) -> web.Response:
        return reply(edge_of(request).status())

    return [web.post(f"{prefix}/cut", cut), web.get(f"{prefix}/status", status)]
