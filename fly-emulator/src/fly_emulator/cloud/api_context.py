"""What the handlers of the cloud's APIs share."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from fly_emulator.cloud.running import App, Cloud

CLOUD: Final = web.AppKey("cloud", Cloud)


def app_of(request: web.Request) -> App:
    """Return the app of the path. Raises StateError (404)."""
    return request.app[CLOUD].app(request.match_info["app"])
