"""`POST /graphql`: what flyctl still asks of api.fly.io's GraphQL.

A field, type or argument that is not emulated is refused by name, as a GraphQL server does. Errors of ours
carry the code that flyctl looks for. Source: superfly/fly-go `client.go`, `error.go`, `resource_*.go`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aiohttp import web
from graphql import ExecutionResult, GraphQLError, GraphQLSchema, build_schema, graphql

from fly_emulator.cloud import addresses, gql_objects
from fly_emulator.cloud.access import scope
from fly_emulator.cloud.api_context import CLOUD
from fly_emulator.cloud.gql_objects import Fields, connection
from fly_emulator.cloud.gql_schema import SCHEMA
from fly_emulator.cloud.running import App, Cloud
from fly_emulator.errors import StateError
from fly_emulator.machines.api_context import body, reply

Resolver: TypeAlias = Callable[..., Any]


def _refused(message: str, code: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": code})


def _find(cloud: Cloud, name: str, apps: frozenset[str] | None = None) -> App:
    """Find an app; one outside of `apps` is not there."""
    try:
        if apps is not None and name not in apps:
            raise StateError("unauthorized", status=403)
        return cloud.app(name)
    except StateError as error:
        raise _refused(f'Could not find App "{name}"', "NOT_FOUND") from error


_FOR_DEPLOY_TOKENS: Final = frozenset(
    {"app", "canPerformBluegreenDeployment", "latestImageDetails", "nearestRegion", "platform", "viewer"}
    | {"allocateIpAddress", "releaseIpAddress"}
)
"""The fields that a deploy token may ask for."""


def _unauthorized(_info: object, **_: object) -> Any:
    raise _refused("Not authorized to access this", "UNAUTHORIZED")


class Queries:
    """The fields of `Query`. `apps`: those the caller may see; None: all."""

    def __init__(self, cloud: Cloud, apps: frozenset[str] | None) -> None:
        self._cloud = cloud
        self._seen = apps

    def fields(self) -> Fields:
        """Return a resolver for each."""
        return {
            "app": self._app,
            "apps": self._apps,
            "appNameAvailable": self._available,
            "canPerformBluegreenDeployment": self._may_bluegreen,
            "latestImageDetails": self._latest_image,
            "nearestRegion": addresses.region(self._cloud.settings.region),
            "organization": self._organization,
            "organizations": self._organizations,
            "platform": self._platform,
            "viewer": gql_objects.user() if self._seen is None else gql_objects.deploy_token(),
        }

    def _app(self, _info: object, name: str = "", **_: object) -> Fields:
        return gql_objects.app(self._cloud, _find(self._cloud, name, self._seen), self._seen)

    def _apps(self, _info: object, organizationId: str | None = None, **_: object) -> Fields:  # noqa: N803 - theirs
        wanted = None if organizationId is None else self._slug(organizationId)
        found = [each for each in self._cloud.apps.values() if wanted in (None, each.record.organization)]
        return connection([gql_objects.app(self._cloud, each) for each in found])

    def _slug(self, organization_id: str) -> str:
        try:
            return self._cloud.organization(organization_id).slug
        except StateError as error:
            raise _refused("Could not find Organization", "NOT_FOUND") from error

    def _available(self, _info: object, name: str) -> bool:
        return name not in self._cloud.apps

    def _may_bluegreen(self, _info: object, name: str) -> bool:
        _find(self._cloud, name, self._seen)
        return True

    def _latest_image(self, _info: object, image: str, **_: object) -> Fields:
        # flyctl takes these words for "an image of the user's own" (internal/command/status/machines.go).
        raise _refused(f"Unknown repository: {image}", "NOT_FOUND")

    def _organization(self, _info: object, slug: str = "", **_: object) -> Fields:
        try:
            return gql_objects.organization(self._cloud.organization(slug))
        except StateError as error:
            raise _refused("Could not find Organization", "NOT_FOUND") from error

    def _organizations(self, _info: object, **_: object) -> Fields:
        found = self._cloud.store.state.organizations
        return connection([gql_objects.organization(each) for each in found])

    def _platform(self, _info: object) -> Fields:
        region = self._cloud.settings.region
        return {"requestRegion": region, "regions": [addresses.region(region)]}


class Mutations:
    """The fields of `Mutation`. `apps`: those the caller may change; None: all."""

    def __init__(self, cloud: Cloud, apps: frozenset[str] | None) -> None:
        self._cloud = cloud
        self._mine = apps

    def fields(self) -> Fields:
        """Return a resolver for each."""
        return {
            "allocateIpAddress": self._allocate,
            "createLimitedAccessToken": self._token,
            "createOrganization": self._create_organization,
            "deleteApp": self._delete_app,
            "moveApp": self._move_app,
            "releaseIpAddress": self._release,
        }

    def _allocate(self, _info: object, input: Fields) -> Fields:  # noqa: A002 - the schema's name
        app = _find(self._cloud, input["appId"], self._mine)
        made = self._cloud.assign(app, input["type"], input.get("region") or "")
        return {"app": gql_objects.app(self._cloud, app), "ipAddress": gql_objects.address(made)}

    def _release(self, _info: object, input: Fields) -> Fields:  # noqa: A002 - the schema's name
        app = _find(self._cloud, input.get("appId") or "", self._mine)
        addresses.release(app.record, input.get("ip") or "")
        self._cloud.changed(app)
        return {"app": gql_objects.app(self._cloud, app)}

    def _token(self, _info: object, input: Fields) -> Fields:  # noqa: A002 - the schema's name
        if input["profile"] != "deploy":
            raise _refused(
                f"createLimitedAccessToken: the emulator makes deploy tokens, no {input['profile']} tokens",
                "UNAVAILABLE",
            )
        app = _find(self._cloud, (input.get("profileParams") or {}).get("app_id") or "")
        token = self._cloud.tokens.make(app.record.name)
        made = {"id": token[-8:], "name": input["name"], "token": token, "tokenHeader": f"FlyV1 {token}"}
        return {"limitedAccessToken": {**made, "user": gql_objects.user()}}

    def _create_organization(self, _info: object, input: Fields) -> Fields:  # noqa: A002 - the schema's name
        return {"organization": gql_objects.organization(self._cloud.add_organization(input["name"]))}

    async def _delete_app(self, _info: object, appId: str) -> Fields:  # noqa: N803 - the schema's name
        app = _find(self._cloud, appId)
        owner = self._cloud.organization(app.record.organization)
        await self._cloud.destroy(appId)
        return {"organization": gql_objects.organization(owner)}

    def _move_app(self, _info: object, input: Fields) -> Fields:  # noqa: A002 - the schema's name
        app = _find(self._cloud, input["appId"])
        app.record.organization = self._cloud.organization(input["organizationId"]).slug
        self._cloud.changed(app)
        return {"app": gql_objects.app(self._cloud, app)}


@functools.cache
def _schema() -> GraphQLSchema:
    return build_schema(SCHEMA)


async def _answer(request: web.Request) -> web.Response:
    document = await body(request)
    query = document.get("query")
    if not isinstance(query, str):
        raise StateError("invalid_argument: query is required", status=400)
    cloud, apps = request.app[CLOUD], scope(request)
    fields = {**Queries(cloud, apps).fields(), **Mutations(cloud, apps).fields()}
    if apps is not None:
        fields |= dict.fromkeys(fields.keys() - _FOR_DEPLOY_TOKENS, _unauthorized)
    result = await graphql(
        _schema(),
        query,
        root_value=fields,
        variable_values=document.get("variables") or {},
        operation_name=document.get("operationName") or None,
    )
    return reply(_shown(result))


def _shown(result: ExecutionResult) -> dict[str, Any]:
    shown = result.formatted
    return {"data": shown.get("data"), **({"errors": shown["errors"]} if "errors" in shown else {})}


ROUTES: Final = (web.post("/graphql", _answer),)
