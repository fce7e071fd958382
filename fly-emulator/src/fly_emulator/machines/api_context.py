"""What the handlers of the Machines API share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from fly_emulator.errors import StateError
from fly_emulator.machines.fleet import Fleet
from fly_emulator.machines.limits import RateLimits
from fly_emulator.machines.machine import Machine

Maker: TypeAlias = Callable[[str], Awaitable[Fleet]]
"""Makes the fleet of a new app."""
NONCE: Final = "fly-machine-lease-nonce"
APPS: Final[web.RequestKey[frozenset[str] | None]] = web.RequestKey("apps")
"""Of a request: the apps that the caller's tokens are good for; None: all of them."""
Scopes: TypeAlias = Callable[[list[str]], frozenset[str]]
"""Says which apps some tokens are good for."""


class Api:
    """The apps that are served, and who may ask."""

    def __init__(
        self, *, fleets: MutableMapping[str, Fleet], make: Maker | None, trusted: bool, token: str | None
    ) -> None:
        self.fleets = fleets
        self.make = make
        self.trusted = trusted
        self.token = token
        self.scopes: Scopes | None = None
        self.limits: RateLimits | None = None

    def fleet(self, request: web.Request) -> Fleet:
        """Return the app of the path. Raises StateError (404)."""
        name = request.match_info["app"]
        if name not in self.fleets:
            raise StateError(f"not_found: app not found: {name}", status=404)
        return self.fleets[name]

    def machine(self, request: web.Request) -> tuple[Fleet, Machine]:
        """Return app and machine of the path. Raises StateError (404)."""
        fleet = self.fleet(request)
        return fleet, fleet.find(request.match_info["id"])

    def leased(self, request: web.Request) -> tuple[Fleet, Machine]:
        """Return app and machine of a change, if the caller may make it. Raises LeaseHeld (409)."""
        fleet, machine = self.machine(request)
        fleet.leases.check(machine.id, request.headers.get(NONCE))
        return fleet, machine


API: Final = web.AppKey("api", Api)


def reply(value: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def body(request: web.Request) -> dict[str, Any]:
    """Read a request's JSON object; an empty body is an empty object. Raises StateError (400)."""
    text = await request.read()
    try:
        document = msgspec.json.decode(text or b"{}")
    except msgspec.DecodeError as error:
        raise StateError(f"invalid_argument: {error}", status=400) from error
    if not isinstance(document, dict):
        raise StateError("invalid_argument: the body must be an object", status=400)
    return document
