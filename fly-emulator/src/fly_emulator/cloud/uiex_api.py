"""`/api/v1`: releases, organisations, builds and logs, as flyctl's uiex client and log reader ask for them.

Source: superfly/flyctl `internal/uiex/*.go`, superfly/fly-go `resource_logs.go`.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from fly_emulator.cloud import logs, releases
from fly_emulator.cloud.access import everything, only
from fly_emulator.cloud.api_context import CLOUD, app_of
from fly_emulator.cloud.records import Organization, Release
from fly_emulator.cloud.running import App
from fly_emulator.errors import StateError
from fly_emulator.machines.api_context import body, reply

_LIMIT: Final = 25


def organization(each: Organization) -> dict[str, Any]:
    """Write an organisation as the REST routes do."""
    return {
        "id": each.id,
        "internal_numeric_id": each.number,
        "slug": each.slug,
        "raw_slug": each.slug,
        "name": each.name,
        "paid_plan": True,
        "personal": each.personal,
        "billing_status": "CURRENT",
        "billable": True,
        "provisions_beta_extensions": False,
        "remote_builder_image": "",
    }


async def _organizations(request: web.Request) -> web.Response:
    everything(request)
    found = request.app[CLOUD].store.state.organizations
    return reply({"organizations": [organization(each) for each in found]})


async def _organization(request: web.Request) -> web.Response:
    found = request.app[CLOUD].organization(request.match_info["slug"])
    return reply({"organization": organization(found)})


async def _releases(request: web.Request) -> web.Response:
    limit = request.query.get("limit", str(_LIMIT))
    if not limit.isdecimal():
        raise StateError(f"invalid_argument: limit: {limit!r} is not a number", status=400)
    newest = list(reversed(app_of(request).record.releases))[: int(limit)]
    return reply({"releases": [releases.shown(each) for each in newest]})


async def _current(request: web.Request) -> web.Response:
    release = app_of(request).current
    if release is None:
        raise StateError("not_found: the app has no release", status=404)
    return reply(releases.shown(release))


async def _all_current(request: web.Request) -> web.Response:
    everything(request)
    apps = request.app[CLOUD].apps
    return reply({name: app.current.created_at for name, app in apps.items() if app.current is not None})


async def _create(request: web.Request) -> web.Response:
    cloud, document = request.app[CLOUD], await body(request)
    app = cloud.app(str(document.get("app_name") or ""))
    only(request, app.record.name)
    image = document.get("image") or ""
    if not image and app.current is not None:
        image = app.current.image_ref
    release = releases.add(
        app.record,
        image=str(image),
        strategy=str(document.get("strategy") or ""),
        definition=document.get("definition"),
    )
    cloud.changed(app)
    return reply({"release": releases.shown(release)}, 201)


async def _update(request: web.Request) -> web.Response:
    app, release = _find(request)
    document = await body(request)
    releases.update(release, document.get("status"), document.get("metadata"))
    request.app[CLOUD].changed(app)
    return reply(releases.shown(release))


def _find(request: web.Request) -> tuple[App, Release]:
    wanted = request.match_info["id"]
    for app in request.app[CLOUD].apps.values():
        for release in app.record.releases:
            if release.id == wanted:
                only(request, app.record.name)
                return app, release
    raise StateError(f"not_found: release not found: {wanted}", status=404)


async def _build(request: web.Request) -> web.Response:
    """Note a build that is none: flyctl reports the look-up of an image as one."""
    document = await body(request)
    return reply({"id": 1, "status": document.get("status") or "started", "wallclock_time_ms": 0})


async def _logs(request: web.Request) -> web.Response:
    token, query = request.query.get("next_token") or "", request.query
    if token and not token.isdecimal():
        raise StateError("invalid_argument: next_token", status=400)
    found = app_of(request).log.page(
        int(token) if token else None,
        machine=query.get("instance") or None,
        region=query.get("region") or None,
    )
    after = str(found[-1].number) if found else token
    return reply({"data": [logs.shown(each) for each in found], "meta": {"next_token": after}})


ROUTES: Final = (
    web.get("/api/v1/organizations", _organizations),
    web.get("/api/v1/organizations/{slug}", _organization),
    web.get("/api/v1/releases/all_current", _all_current),
    web.get("/api/v1/apps/{app}/releases", _releases),
    web.get("/api/v1/apps/{app}/releases/current", _current),
    web.post("/api/v1/releases", _create),
    web.patch("/api/v1/releases/{id}", _update),
    web.post("/api/v1/builds", _build),
    web.post("/api/v1/builds/finish", _build),
    web.get("/api/v1/apps/{app}/logs", _logs),
)
