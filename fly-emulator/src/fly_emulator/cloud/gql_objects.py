"""Apps, releases, machines and organisations as GraphQL answers them: what is not asked for is not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from fly_emulator.cloud.access import repository
from fly_emulator.cloud.images import SIZE
from fly_emulator.cloud.records import USER, Address, Organization, Release
from fly_emulator.cloud.running import App, Cloud
from fly_emulator.machines import wire
from fly_emulator.machines.machine import Machine

Fields: TypeAlias = dict[str, Any]
"""A value, or a function of the resolver's info and the field's arguments, for each field."""


def _later(make: Callable[[], Any]) -> Callable[..., Any]:
    """Return a resolver that makes the value if it is asked for."""

    def resolve(_info: object) -> Any:
        return make()

    return resolve


def connection(nodes: list[Fields]) -> Fields:
    """Write a list as GraphQL's pages; all is on one page."""
    return {"nodes": nodes, "pageInfo": {"hasNextPage": False, "endCursor": None}}


def user() -> Fields:
    """Write whoever holds the token."""
    return {"__typename": "User", **USER, "enablePaidHobby": False}


def deploy_token() -> Fields:
    """Write who holds only a deploy token: no user."""
    return {"__typename": "Macaroon", "email": "deploy-token@localhost"}


def organization(each: Organization) -> Fields:
    """Write an organisation."""
    member = {"cursor": "1", "node": user(), "joinedAt": "2026-01-01T00:00:00Z", "role": "ADMIN"}
    return {
        "id": each.id,
        "internalNumericId": str(each.number),
        "slug": each.slug,
        "rawSlug": each.slug,
        "name": each.name,
        "type": "PERSONAL" if each.personal else "SHARED",
        "paidPlan": True,
        "billable": True,
        "billingStatus": "CURRENT",
        "viewerRole": "admin",
        "provisionsBetaExtensions": False,
        "remoteBuilderImage": "",
        "limitedAccessTokens": connection([]),
        "members": {"edges": [member]},
        "addOns": connection([]),
    }


def release(each: Release) -> Fields:
    """Write a release."""
    return {
        "id": each.id,
        "version": each.version,
        "stable": each.status == "complete",
        "inProgress": each.status in ("pending", "running"),
        "reason": "",
        "description": "Release",
        "status": each.status,
        "deploymentStrategy": each.strategy,
        "imageRef": each.image_ref,
        "configDefinition": each.definition,
        "metadata": each.metadata,
        "user": user(),
        "createdAt": each.created_at,
    }


def address(each: Address) -> Fields:
    """Write an address."""
    return {
        "id": each.id,
        "address": each.ip,
        "type": each.type,
        "region": each.region,
        "serviceName": "",
        "createdAt": each.created_at,
    }


def app(cloud: Cloud, each: App, apps: frozenset[str] | None = None) -> Fields:
    """Write an app. `apps`: those of which images may be resolved; None: all."""
    record = each.record
    shared = next((one.ip for one in record.addresses if one.type == "shared_v4"), None)
    own = [one for one in record.addresses if one.type != "shared_v4"]
    return {
        "id": record.name,
        "internalNumericId": record.number,
        "name": record.name,
        "hostname": each.hostname,
        "appUrl": each.url,
        "cnameTarget": each.hostname,
        "deployed": each.deployed,
        "status": each.status,
        "version": each.current.version if each.current else 0,
        "platformVersion": "machines",
        "network": "" if record.network == "default" else record.network,
        "organization": _later(lambda: organization(cloud.organization(record.organization))),
        "currentRelease": _later(lambda: _newest(each, finished=True)),
        "currentReleaseUnprocessed": _later(lambda: _newest(each)),
        "releasesUnprocessed": _releases(each),
        "config": _later(lambda: {"definition": each.current.definition if each.current else None}),
        "services": [],
        "secrets": [{"name": name} for name in sorted(record.secrets)],
        "ipAddresses": _later(lambda: connection([address(one) for one in own])),
        "sharedIpAddress": shared,
        "egressIpAddresses": connection([]),
        "image": _image(cloud, apps),
        "imageDetails": _later(lambda: _image_version(each)),
        "machines": _later(lambda: connection([machine(cloud, each, one) for one in each.fleet.machines()])),
        "hostIssues": connection([]),
        "limitedAccessTokens": connection([]),
    }


def _newest(each: App, *, finished: bool = False) -> Fields | None:
    """Write the newest release; `finished`: the newest that was completed."""
    for one in reversed(each.record.releases):
        if not finished or one.status == "complete":
            return release(one)
    return None


def _releases(each: App) -> Callable[..., Fields]:
    def resolve(_info: object, first: int | None = None, **_: object) -> Fields:
        return connection([release(one) for one in reversed(each.record.releases)][:first])

    return resolve


def _image(cloud: Cloud, apps: frozenset[str] | None) -> Callable[..., Fields | None]:
    def resolve(_info: object, ref: str) -> Fields | None:
        owner = repository(ref)
        found = cloud.images.find(ref) if apps is None or owner in {"", *apps} else None
        if found is None:
            return None
        return {
            "id": f"img_{found.digest.removeprefix('sha256:')[:16]}",
            "digest": found.digest,
            "ref": ref,
            "compressedSize": SIZE,
            "compressedSizeFull": str(SIZE),
            "manifest": None,
        }

    return resolve


def _image_version(each: App) -> Fields | None:
    newest = next(iter(reversed(each.fleet.machines())), None)
    if newest is None:
        return None
    return {
        "registry": "",
        "repository": "",
        "tag": "",
        "digest": "",
        **wire.encode_summary(newest)["image_ref"],
    }


def machine(cloud: Cloud, owner: App, each: Machine) -> Fields:
    """Write a machine as the API's older half sees it."""
    record = each.record
    ip = {"family": "v6", "kind": "privatenet", "ip": record.private_ip, "maskSize": 112}
    return {
        "id": record.id,
        "name": record.name,
        "config": _later(lambda: wire.encode_config(record.config)),
        "state": record.state,
        "region": record.region,
        "createdAt": record.created_at,
        "app": _later(lambda: app(cloud, owner)),
        "ips": connection([ip]),
        "host": {"id": "localhost"},
        "egressIpAddresses": connection([]),
    }
