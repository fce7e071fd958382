"""`/_emulator/*`: how tests rotate keys, break the JWKS, move time, and see what was sent."""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from supabase_emulator.errors import AuthError
from supabase_emulator.project import PROJECT, Outage
from supabase_emulator.sessions import decode, reply
from supabase_emulator.settings import MAX_TOKEN_SECONDS, Algorithm


class _Rotate(Struct, forbid_unknown_fields=True):
    """`unannounced`: to a key that no JWKS has shown before; `revoke`: trust no previous key any more."""

    algorithm: Algorithm | None = None
    unannounced: bool = False
    revoke: bool = False


class _Change(Struct, forbid_unknown_fields=True):
    """`token_seconds` for tokens from now on; `advance_s` moves the clock, back if it is negative."""

    token_seconds: int | None = None
    advance_s: float = 0.0


async def rotate(request: web.Request) -> web.Response:
    """Let another key sign; with `revoke` the ones before are not trusted any more."""
    project = request.app[PROJECT]
    asked = await decode(request, _Rotate)
    current = project.keys.rotate(asked.algorithm, unannounced=asked.unannounced)
    revoked = project.keys.revoke_previous() if asked.revoke else []
    project.store.save()
    return reply({"current": current.kid, "algorithm": current.jwk["alg"], "revoked": revoked})


async def begin_outage(request: web.Request) -> web.Response:
    """Break the JWKS, or everything."""
    outage = await decode(request, Outage)
    request.app[PROJECT].outage = outage
    return reply(outage, 201)


async def end_outage(request: web.Request) -> web.Response:
    """Repair it."""
    request.app[PROJECT].outage = None
    return web.Response(status=204)


async def requests(request: web.Request) -> web.Response:
    """Show the last requests, oldest first."""
    return reply({"requests": list(request.app[PROJECT].seen)})


async def clock(request: web.Request) -> web.Response:
    """Change the life of tokens, and the time."""
    project = request.app[PROJECT]
    asked = await decode(request, _Change)
    if asked.token_seconds is not None:
        if not 1 <= asked.token_seconds <= MAX_TOKEN_SECONDS:
            raise AuthError(400, "validation_failed", f"token_seconds must be 1 to {MAX_TOKEN_SECONDS}")
        project.token_seconds = asked.token_seconds
    project.clock.advance(asked.advance_s)
    now = project.clock()
    return reply({"token_seconds": project.token_seconds, "now": now, "real": now - project.clock.offset})


async def healthz(_request: web.Request) -> web.Response:
    """Say that the server answers."""
    return reply({"status": "ok"})


ROUTES = (
    web.post("/_emulator/rotate", rotate),
    web.post("/_emulator/outage", begin_outage),
    web.delete("/_emulator/outage", end_outage),
    web.get("/_emulator/requests", requests),
    web.post("/_emulator/clock", clock),
    web.get("/_emulator/healthz", healthz),
)
