"""Deploy tokens: each is good for one app, as `fly tokens create deploy` makes them.

Documented: such a token manages one app and its resources (superfly/docs `security/tokens`). Seen by others:
`apps list` fails with it and `status --app` works (simonw/datasette-publish-fly issue 34); another app is
"Could not find App" to GraphQL (superfly/docs issue 1065) and 403 "unauthorized" to the Machines API
(superfly/fly-go `flaps/flaps_apps_test.go`). Several may come in one header, joined by commas
(superfly/fly-go `tokens.Parse`). Not documented, and so as narrow as can be: it makes no apps, organisations
or tokens, moves and deletes none, and resolves an image only of an app it is good for.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Final

from aiohttp import web

from fly_emulator.errors import StateError
from fly_emulator.machines.api_context import APPS

PREFIX: Final = "deploy_"


class DeployTokens:
    """The deploy tokens of a run, in memory: after a restart there are none."""

    def __init__(self) -> None:
        self._apps: dict[str, str] = {}

    def make(self, app: str) -> str:
        """Make a token for an app."""
        token = PREFIX + token_hex(16)
        self._apps[token] = app
        return token

    def apps(self, given: list[str]) -> frozenset[str]:
        """Return the apps that some tokens are good for."""
        return frozenset(self._apps[each] for each in given if each in self._apps)


def scope(request: web.Request) -> frozenset[str] | None:
    """Return the apps that the caller may see; None: all."""
    return request.get(APPS)


def everything(request: web.Request) -> None:
    """Refuse whoever has deploy tokens only. Raises StateError (403)."""
    if scope(request) is not None:
        raise StateError("unauthorized", status=403)


def only(request: web.Request, app: str) -> None:
    """Refuse whose tokens are good for other apps. Raises StateError (403)."""
    found = scope(request)
    if found is not None and app not in found:
        raise StateError("unauthorized", status=403)


def repository(ref: str) -> str:
    """Return the app whose images a reference of registry.fly.io names; empty for other registries."""
    registry, _, rest = ref.partition("/")
    return rest.partition("@")[0].partition(":")[0] if registry == "registry.fly.io" else ""
