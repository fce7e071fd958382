"""`/v1` beside the machines: apps, secrets, addresses, certificates, regions.

Sources: superfly/fly-go `flaps/flaps_apps.go`, `flaps_secrets.go`, `flaps_ip_assignments.go`,
`flaps_certificates.go`, `flaps_platform.go`.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from fly_emulator.clock import timestamp
from fly_emulator.cloud import addresses
from fly_emulator.cloud.access import everything
from fly_emulator.cloud.api_context import CLOUD, app_of
from fly_emulator.cloud.records import Certificate, Secret
from fly_emulator.cloud.running import App
from fly_emulator.errors import StateError
from fly_emulator.machines.api_context import body, reply

_APP: Final = "/v1/apps/{app}"


def _shown(request: web.Request, app: App) -> dict[str, Any]:
    record = app.record
    owner = request.app[CLOUD].organization(record.organization)
    return {
        "id": record.name,
        "name": record.name,
        "internal_numeric_id": record.number,
        "organization": {"name": owner.name, "slug": owner.slug, "internal_numeric_id": owner.number},
        "network": record.network,
        "status": app.status,
        "machine_count": len(app.fleet.machines()),
        "volume_count": 0,
        "cname_target": app.hostname,
        "app_role": "",
        "created_at": record.created_at,
    }


async def _list(request: web.Request) -> web.Response:
    everything(request)
    slug = request.query.get("org_slug")
    apps = [app for app in request.app[CLOUD].apps.values() if slug in (None, app.record.organization)]
    return reply({"total_apps": len(apps), "apps": [_shown(request, app) for app in apps]})


async def _create(request: web.Request) -> web.Response:
    everything(request)
    document = await body(request)
    name = document.get("app_name") or document.get("name")
    if not isinstance(name, str) or not name:
        raise StateError("invalid_argument: name is required", status=400)
    app = await request.app[CLOUD].create(
        name, str(document.get("org_slug") or "personal"), str(document.get("network") or "")
    )
    return reply(_shown(request, app), 201)


async def _get(request: web.Request) -> web.Response:
    return reply(_shown(request, app_of(request)))


async def _delete(request: web.Request) -> web.Response:
    everything(request)
    await request.app[CLOUD].destroy(request.match_info["app"])
    return web.Response(status=202)


# Secrets.


def _secret(name: str, secret: Secret, *, value: bool = False) -> dict[str, Any]:
    shown = {"name": name, "digest": secret.digest}
    shown |= {"created_at": secret.created_at, "updated_at": secret.updated_at}
    return {**shown, "value": secret.value} if value else shown


async def _secrets(request: web.Request) -> web.Response:
    """List them: names and digests; values only to a machine at Fly, so never here."""
    secrets = app_of(request).record.secrets
    return reply({"secrets": [_secret(name, secrets[name]) for name in sorted(secrets)]})


async def _get_secret(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    secrets = app_of(request).record.secrets
    if name not in secrets:
        raise StateError(f"not_found: secret not found: {name}", status=404)
    return reply(_secret(name, secrets[name]))


async def _update_secrets(request: web.Request) -> web.Response:
    app, document = app_of(request), await body(request)
    values = document.get("values")
    if not isinstance(values, dict) or not all(isinstance(each, str | None) for each in values.values()):
        raise StateError("invalid_argument: values must be an object of strings and nulls", status=400)
    return _changed(app, values)


async def _set_secret(request: web.Request) -> web.Response:
    app, value = app_of(request), (await body(request)).get("value")
    if not isinstance(value, str):
        raise StateError("invalid_argument: value is required", status=400)
    name = request.match_info["name"]
    version = app.vault.update({name: value})
    return reply({**_secret(name, app.record.secrets[name]), "version": version}, 201)


async def _delete_secret(request: web.Request) -> web.Response:
    app, name = app_of(request), request.match_info["name"]
    if name not in app.record.secrets:
        raise StateError(f"not_found: secret not found: {name}", status=404)
    return reply({"version": app.vault.update({name: None})})


def _changed(app: App, values: dict[str, str | None]) -> web.Response:
    version = app.vault.update(values)
    secrets = app.record.secrets
    touched = [_secret(name, secrets[name]) for name in sorted(values) if name in secrets]
    return reply({"secrets": touched, "version": version})


# Addresses.


async def _addresses(request: web.Request) -> web.Response:
    return reply({"ips": [addresses.assignment(each) for each in app_of(request).record.addresses]})


async def _assign(request: web.Request) -> web.Response:
    app, document = app_of(request), await body(request)
    made = request.app[CLOUD].assign(app, document.get("type"), str(document.get("region") or ""))
    return reply(addresses.assignment(made), 201)


async def _unassign(request: web.Request) -> web.Response:
    app = app_of(request)
    addresses.release(app.record, request.match_info["ip"])
    request.app[CLOUD].changed(app)
    return web.Response(status=204)


# Certificates: names are kept, none is issued.


def _certificate(each: Certificate) -> dict[str, Any]:
    return {
        "hostname": each.hostname,
        "status": "awaiting_configuration",
        "configured": False,
        "acme_requested": True,
        "created_at": each.created_at,
        "updated_at": each.created_at,
    }


def _detail(app: App, each: Certificate) -> dict[str, Any]:
    v4 = [one.ip for one in app.record.addresses if "v4" in one.type]
    v6 = [one.ip for one in app.record.addresses if one.type == "v6"]
    return {
        **_certificate(each),
        "certificates": [],
        "validation": {"dns_configured": False, "alpn_configured": False, "http_configured": False},
        "dns_requirements": {
            "a": v4,
            "aaaa": v6,
            "cname": app.hostname,
            "acme_challenge": {
                "name": f"_acme-challenge.{each.hostname}",
                "target": f"{each.hostname}.flydns.net",
            },
            "ownership": {"name": f"_fly-ownership.{each.hostname}", "app_value": f"app-{app.record.number}"},
        },
    }


def _named(app: App, hostname: str) -> Certificate:
    for each in app.record.certificates:
        if each.hostname == hostname:
            return each
    raise StateError(f"not_found: certificate not found: {hostname}", status=404)


async def _certificates(request: web.Request) -> web.Response:
    found = app_of(request).record.certificates
    return reply({"certificates": [_certificate(each) for each in found], "total_count": len(found)})


async def _add_certificate(request: web.Request) -> web.Response:
    app, hostname = app_of(request), (await body(request)).get("hostname")
    if not isinstance(hostname, str) or not hostname:
        raise StateError("invalid_argument: hostname is required", status=400)
    if any(each.hostname == hostname for each in app.record.certificates):
        raise StateError("already_exists: Hostname already exists on app", status=422)
    made = Certificate(hostname=hostname, created_at=timestamp())
    app.record.certificates = [*app.record.certificates, made]
    request.app[CLOUD].changed(app)
    return reply(_detail(app, made), 201)


async def _get_certificate(request: web.Request) -> web.Response:
    app = app_of(request)
    return reply(_detail(app, _named(app, request.match_info["hostname"])))


async def _delete_certificate(request: web.Request) -> web.Response:
    app = app_of(request)
    gone = _named(app, request.match_info["hostname"])
    app.record.certificates = [each for each in app.record.certificates if each is not gone]
    request.app[CLOUD].changed(app)
    return web.Response(status=204)


# What there is only one of, or none.


async def _volumes(request: web.Request) -> web.Response:
    app_of(request)
    return reply([])


async def _no_volumes(request: web.Request) -> web.Response:
    app_of(request)
    raise StateError("unimplemented: the emulator has no volumes", status=501)


async def _regions(request: web.Request) -> web.Response:
    region = request.app[CLOUD].settings.region
    return reply({"Regions": [addresses.region(region)], "Nearest": region})


async def _placements(request: web.Request) -> web.Response:
    document = await body(request)
    region = request.app[CLOUD].settings.region
    count = int(document.get("count") or 1)
    return reply({"Regions": [{"Region": region, "Count": count, "Concurrency": count}]})


ROUTES: Final = (
    web.get("/v1/apps", _list),
    web.post("/v1/apps", _create),
    web.get(_APP, _get),
    web.delete(_APP, _delete),
    web.get(_APP + "/secrets", _secrets),
    web.post(_APP + "/secrets", _update_secrets),
    web.get(_APP + "/secrets/{name}", _get_secret),
    web.post(_APP + "/secrets/{name}", _set_secret),
    web.delete(_APP + "/secrets/{name}", _delete_secret),
    web.get(_APP + "/ip_assignments", _addresses),
    web.post(_APP + "/ip_assignments", _assign),
    web.delete(_APP + "/ip_assignments/{ip}", _unassign),
    web.get(_APP + "/certificates", _certificates),
    web.post(_APP + "/certificates/acme", _add_certificate),
    web.get(_APP + "/certificates/{hostname}", _get_certificate),
    web.post(_APP + "/certificates/{hostname}/check", _get_certificate),
    web.delete(_APP + "/certificates/{hostname}", _delete_certificate),
    web.get(_APP + "/volumes", _volumes),
    web.post(_APP + "/volumes", _no_volumes),
    web.get("/v1/platform/regions", _regions),
    web.post("/v1/platform/placements", _placements),
)
