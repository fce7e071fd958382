"""One application for what flyctl reaches at api.fly.io and at api.machines.dev."""

from __future__ import annotations

from aiohttp import web

from fly_emulator.cloud import flaps_api, gql_api, uiex_api
from fly_emulator.cloud.access import everything
from fly_emulator.cloud.api_context import CLOUD
from fly_emulator.cloud.running import Cloud
from fly_emulator.machines.api import ApiSettings, create_api
from fly_emulator.machines.api_context import reply


def create_cloud_api(cloud: Cloud, settings: ApiSettings) -> web.Application:
    """Build the application; tokens, hosts and origins are checked as for the Machines API."""
    api = create_api(cloud.fleets, settings, apps=flaps_api.ROUTES, scopes=cloud.tokens.apps)
    api[CLOUD] = cloud
    api.add_routes([*uiex_api.ROUTES, *gql_api.ROUTES, web.get("/_emulator/apps", _apps)])
    return api


async def _apps(request: web.Request) -> web.Response:
    """Say where each app's edge listens."""
    everything(request)
    return reply(dict(request.app[CLOUD].urls()))
