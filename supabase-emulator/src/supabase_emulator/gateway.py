"""What stands before Supabase Auth: the API key, and here also the guard against web pages.

The key comes as `apikey`. A publishable or secret key is no token: in `Authorization` it may stand only if it
equals `apikey`; a secret key is refused with 401 from a browser, told by its User-Agent (guide "API keys").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from supabase_emulator.errors import API_VERSION, AuthError, GatewayError
from supabase_emulator.project import PROJECT, Outage, Project, Seen

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_OPEN: Final = frozenset({"/auth/v1/.well-known/jwks.json"})
_HUGE: Final = b'{"keys":[' + b" " * 1_000_000 + b"]}"


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every refusal in its form, and note what came."""
    project = request.app[PROJECT]
    try:
        response = await handler(request)
    except AuthError as error:
        body = error.body(request.headers.get(API_VERSION))
        response = web.Response(body=body, status=error.status, content_type="application/json")
        response.headers["x-sb-error-code"] = error.code
    except GatewayError as error:
        response = web.Response(body=error.body(), status=error.status, content_type="application/json")
    except web.HTTPException as error:
        response = web.json_response({"message": error.reason}, status=error.status)
    if not request.path.startswith("/_emulator/"):
        key = project.kind_of_key(request.headers.get("apikey"))
        project.seen.append(Seen(method=request.method, path=request.path, status=response.status, key=key))
    return response


@web.middleware
async def only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page could send: another host's name (DNS rebinding), or any origin."""
    if request.url.host not in HERE or "Origin" in request.headers:
        raise GatewayError("forbidden", "The emulator answers to programs on this machine only.", 403)
    return await handler(request)


@web.middleware
async def faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Break what is to be broken."""
    if request.path.startswith("/_emulator/"):
        return await handler(request)
    outage = request.app[PROJECT].fault(jwks=request.path in _OPEN)
    if outage is None:
        return await handler(request)
    return await _broken(outage, request, handler)


async def _broken(outage: Outage, request: web.Request, handler: Handler) -> web.StreamResponse:
    match outage.kind:
        case "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        case "status":
            return web.Response(status=outage.status, text="upstream error")
        case "slow":
            await asyncio.sleep(outage.seconds)
            return await handler(request)
        case "garbage":
            return web.Response(text="<html>not what you expected</html>", content_type="text/html")
        case "empty":
            return web.json_response({"keys": []})
        case "huge":
            return web.Response(body=_HUGE, content_type="application/json")


@web.middleware
async def api_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who has one of the project's API keys."""
    if not request.path.startswith("/auth/v1/") or request.path in _OPEN:
        return await handler(request)
    project = request.app[PROJECT]
    given = request.headers.get("apikey") or request.query.get("apikey")
    if not given:
        raise GatewayError(
            "No API key found in request", "No `apikey` request header or url param was found."
        )
    kind = project.kind_of_key(given)
    if kind == "unknown":
        raise GatewayError("Invalid API key", "Double check the project's API keys.")
    if kind == "secret" and "Mozilla" in request.headers.get("User-Agent", ""):
        raise GatewayError("Forbidden use of secret API key in browser", "Use a publishable key there.")
    _refuse_key_as_token(project, request, given)
    return await handler(request)


def _refuse_key_as_token(project: Project, request: web.Request, given: str) -> None:
    token = bearer(request)
    if token and token != given and project.kind_of_key(token) in ("publishable", "secret"):
        raise GatewayError("Invalid Authorization", "A publishable or secret key is not a JWT.")


def bearer(request: web.Request) -> str:
    """Return the Authorization header's token, or nothing."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def role(request: web.Request) -> str:
    """Return the role the request comes with: of its token if it has one, else of its opaque API key.

    A legacy key works as a token, so it must stand in `Authorization`: in `apikey` alone it is none.
    """
    project = request.app[PROJECT]
    given = request.headers.get("apikey") or request.query.get("apikey") or ""
    token = bearer(request)
    if token in ("", given) and project.kind_of_key(given) == "secret":
        return "service_role"
    return {project.legacy["anon"]: "anon", project.legacy["service_role"]: "service_role"}.get(token, "")


MIDDLEWARES: Final = (errors, only_from_here, faults, api_key)
