"""The Machines API: `/v1/apps`, and on each machine's own socket without a token.

Sources: superfly/docs `machines/api/*`, superfly/fly-go `flaps/*`.
"""

from __future__ import annotations

import hmac
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.machines import api_machines
from fly_emulator.machines.api_context import API, APPS, Api, Maker, Scopes, body, reply
from fly_emulator.machines.fleet import Fleet
from fly_emulator.machines.lease import LeaseHeld
from fly_emulator.machines.limits import RateLimits

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ORGANIZATION: Final = {"name": "Personal", "slug": "personal"}


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decides about the API."""

    token: str | None = None
    """None: any token will do, but there must be one."""
    rate_limits: bool = False
    """Off by default: a developer's loops should not fail for Fly's sake; on, they fail as on Fly."""


def create_api(
    fleets: MutableMapping[str, Fleet],
    settings: ApiSettings | None = None,
    *,
    make: Maker | None = None,
    trusted: bool = False,
    apps: Iterable[web.AbstractRouteDef] | None = None,
    scopes: Scopes | None = None,
) -> web.Application:
    """Build the application. `fleets` are the apps by name; what `make` makes is added to them.

    `trusted` asks for no token: a machine's own socket. `apps` replaces the routes of `/v1/apps` itself.
    `scopes` knows tokens that are good for some apps only.
    """
    chosen = settings or ApiSettings()
    app = web.Application(middlewares=[_errors, _only_from_here, _authenticate, _limit])
    app[API] = Api(fleets=fleets, make=make, trusted=trusted, token=chosen.token)
    app[API].scopes = scopes
    app[API].limits = RateLimits() if chosen.rate_limits else None
    app.add_routes(_APPS if apps is None else apps)
    app.add_routes(api_machines.ROUTES)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every refusal as the API does: `error` in the body, and what flyctl reads of leases."""
    try:
        return await handler(request)
    except LeaseHeld as error:
        held = {"status": "error", "message": error.problem, "code": "invalid", "error": error.problem}
        return reply(held, 409)
    except StateError as error:
        return _refuse(error.status, error.problem)
    except EmulatorError as error:
        return _refuse(500, error.problem)
    except web.HTTPException as error:
        return _refuse(error.status, error.reason)


def _refuse(status: int, problem: str) -> web.Response:
    code, found, _ = problem.partition(": ")
    return reply({"error": problem, "status": code if found and " " not in code else "unknown"}, status)


_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1", "flaps"})


@web.middleware
async def _only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page could send: another host's name (DNS rebinding), or any origin."""
    host = request.url.host if not request.app[API].trusted else "localhost"
    if host not in _HERE or "Origin" in request.headers:
        raise StateError("forbidden: the emulator answers to programs on this machine only", status=403)
    return await handler(request)


@web.middleware
async def _authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    api = request.app[API]
    if not api.trusted:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() in ("bearer", "flyv1") else ""
        apps = _apps_of(api, [each.strip() for each in given.split(",") if each.strip()])
        request[APPS] = apps
        if apps is not None and request.match_info.get("app", next(iter(apps))) not in apps:
            raise StateError("unauthorized", status=403)
    return await handler(request)


def _apps_of(api: Api, given: list[str]) -> frozenset[str] | None:
    """Return the apps that tokens are good for; None: all. Raises StateError (401): for none."""
    if given and api.token is None:
        return None
    if any(hmac.compare_digest(each, api.token or "") for each in given):
        return None
    if apps := api.scopes(given) if api.scopes is not None else None:
        return apps
    raise StateError("unauthenticated: invalid or missing token", status=401)


@web.middleware
async def _limit(request: web.Request, handler: Handler) -> web.StreamResponse:
    limits = request.app[API].limits
    if limits is not None:
        scope = request.match_info.get("id") or request.match_info.get("app") or ""
        if not limits.admit(_action(request), scope):
            raise StateError("resource_exhausted: rate limit exceeded", status=429)
    return await handler(request)


def _action(request: web.Request) -> str:
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    if request.method == "GET" and path.endswith("/machines/{id}"):
        return "get"
    return f"{request.method} {path}"


def _app_document(fleet: Fleet) -> dict[str, Any]:
    count = len(fleet.machines())
    return {
        "id": fleet.app,
        "name": fleet.app,
        "organization": _ORGANIZATION,
        "status": "deployed" if count else "pending",
        "machine_count": count,
        "volume_count": 0,
        "network": "default",
    }


async def _list_apps(request: web.Request) -> web.StreamResponse:
    apps = [_app_document(fleet) for fleet in request.app[API].fleets.values()]
    return reply({"total_apps": len(apps), "apps": apps})


async def _create_app(request: web.Request) -> web.StreamResponse:
    api = request.app[API]
    document = await body(request)
    name = document.get("app_name") or document.get("name")
    if not isinstance(name, str) or not name:
        raise StateError("invalid_argument: name is required", status=400)
    if name in api.fleets:
        raise StateError("name_taken: Name has already been taken", status=422)
    if api.make is None:
        raise StateError("unimplemented: the emulator has the apps it was started with", status=501)
    fleet = api.fleets[name] = await api.make(name)
    return reply({**_app_document(fleet), "created_at": int(time.time())}, 201)


async def _get_app(request: web.Request) -> web.StreamResponse:
    return reply(_app_document(request.app[API].fleet(request)))


async def _delete_app(request: web.Request) -> web.StreamResponse:
    """Destroy the app's machines; `force` also those that run."""
    fleet = request.app[API].fleet(request)
    force = request.query.get("force") == "true"
    if not force and any(machine.state == "started" for machine in fleet.machines()):
        raise StateError("failed_precondition: the app has running machines", status=412)
    for machine in fleet.machines():
        await machine.destroy(force=True)
    return web.Response(status=202)


_APPS: Final = (
    web.get("/v1/apps", _list_apps),
    web.post("/v1/apps", _create_app),
    web.get("/v1/apps/{app}", _get_app),
    web.delete("/v1/apps/{app}", _delete_app),
)


class MachineSockets:
    """A unix socket for each machine, with the same API and no token: Fly's `/.fly/api`.

    On a shared host its path cannot be `/.fly/api`; the machine finds it in FLY_API_SOCKET.
    """

    def __init__(self, fleet: Fleet, api: web.Application) -> None:
        self._fleet = fleet
        # Short, because a socket's path may have 103 characters at most on macOS.
        self._directory = Path(tempfile.mkdtemp(prefix="fly-"))
        self._runner = web.AppRunner(api, access_log=None, shutdown_timeout=1.0)
        self._sites: dict[str, web.UnixSite] = {}

    def path(self, machine_id: str) -> Path:
        """Say where a machine's socket is."""
        return self._directory / f"{machine_id}.sock"

    async def start(self) -> None:
        """Serve the machines there are, and tell the fleet where."""
        await self._runner.setup()
        for machine in self._fleet.machines():
            await self.open(machine.id)
        self._fleet.opened = self.open
        self._fleet.sockets = self.path

    async def open(self, machine_id: str) -> None:
        """Serve one more; again is harmless."""
        if machine_id not in self._sites:
            site = self._sites[machine_id] = web.UnixSite(self._runner, self.path(machine_id))
            await site.start()
            self.path(machine_id).chmod(0o600)

    async def close(self) -> None:
        """Serve none, and remove the sockets."""
        await self._runner.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)
