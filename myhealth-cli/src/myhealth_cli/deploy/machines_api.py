"""The Machines API, for the one thing flyctl cannot do: metadata without restarting a machine, and leases."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import msgspec

from myhealth_cli.deploy.errors import FlyctlError

if TYPE_CHECKING:
    from myhealth_cli.deploy.flyctl import Flyctl

_PUBLIC: Final = "https://api.machines.dev"
_NONCE: Final = "fly-machine-lease-nonce"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=20)
_LEASE_S: Final = 15
_SET_TRIES: Final = 3
_SET_PAUSE_S: Final = 0.5
_FRESH_S: Final = 20.0
"""How long tokens are used before flyctl is asked again, which drops them 30 s before they expire."""


_MACAROONS: Final = ("fm1r_", "fm1a_", "fm2_")
LOGIN: Final = "`fly auth login`, or set FLY_API_TOKEN"


async def token(fly: Flyctl) -> str:
    """Return the tokens that flyctl works with now, joined by commas; they are never shown.

    flyctl renews what it can and drops what has expired or cannot be read, so it is asked again before each
    use: a login's tokens live for ten minutes. Raises FlyctlError: there are none.
    """
    try:
        found = (await fly.run("auth", "token", "--quiet")).strip()
    except FlyctlError as error:
        if "no access token" not in str(error):
            raise
        raise FlyctlError("not logged in to Fly", hint=LOGIN) from error
    if not found:
        raise FlyctlError(
            "the token for Fly has expired, or is not whole",
            hint="make a new one (docs/design/ci.md), and copy all of it: it has some 700 characters",
        )
    if " " in found:
        raise FlyctlError(
            "the token for Fly has a scheme (FlyV1) in its middle, which flyctl does not read",
            hint="of tokens joined by commas only the first may begin with FlyV1 (docs/design/ci.md)",
        )
    return found


class _Lease(msgspec.Struct, frozen=True):
    nonce: str
    expires_at: float = 0.0


class Lease(msgspec.Struct, frozen=True):
    """A lease that was taken at `at`, by Fly's clock (seconds since 1970): computers' clocks differ."""

    nonce: str
    at: float


class MachinesApi:
    """An async context manager. Every call raises FlyctlError when the API refuses or cannot be reached."""

    def __init__(self, fly: Flyctl, url: str | None = None, *, fresh_s: float = _FRESH_S) -> None:
        self._url = (url or os.environ.get("FLY_FLAPS_BASE_URL") or _PUBLIC).rstrip("/")
        self._fly = fly
        self._fresh_s = fresh_s
        self._token, self._asked = "", 0.0
        self.ahead_s = 0.0
        """How far Fly's clock is ahead of ours, by the last answer's `Date`; within a second or two."""

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self

    async def token(self) -> str:
        """Return tokens that are good now."""
        if not self._token or time.monotonic() - self._asked > self._fresh_s:
            self._token, self._asked = await token(self._fly), time.monotonic()
        return self._token

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def metadata(self, app: str, machine: str) -> dict[str, str]:
        """Return a machine's metadata."""
        return await self._ask("GET", app, machine, "metadata") or {}

    async def set_metadata(self, app: str, machine: str, key: str, value: str | None) -> None:
        """Set one pair, or remove it (None); the machine keeps its version and runs on."""
        method, body = ("DELETE", None) if value is None else ("POST", {"value": value})
        # Said twice it means the same. One answer that is lost must not take a proven release back.
        for left in reversed(range(_SET_TRIES)):
            try:
                await self._ask(method, app, machine, f"metadata/{key}", body)
                break
            except FlyctlError:
                if not left:
                    raise
                await asyncio.sleep(_SET_PAUSE_S)

    async def lease(self, app: str, machine: str) -> Lease:
        """Take a machine's lease for a few seconds; fails while somebody has it."""
        answer = await self._ask("POST", app, machine, "lease", {"ttl": _LEASE_S})
        try:
            found = msgspec.convert(answer["data"], _Lease)
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise FlyctlError("the Machines API answers something else than a lease") from error
        return Lease(found.nonce, found.expires_at - _LEASE_S if found.expires_at else time.time())

    async def release(self, app: str, machine: str, nonce: str) -> None:
        """Give a lease back."""
        await self._ask("DELETE", app, machine, "lease", nonce=nonce)

    def _heard(self, date: str) -> None:
        with suppress(ValueError):
            self.ahead_s = parsedate_to_datetime(date).timestamp() - time.time()

    async def _ask(
        self, method: str, app: str, machine: str, what: str, body: object = None, *, nonce: str = ""
    ) -> Any:
        url = f"{self._url}/v1/apps/{app}/machines/{machine}/{what}"
        headers = {"Authorization": authorization(await self.token(), macaroons_only=True)}
        if nonce:
            headers[_NONCE] = nonce
        try:
            async with self._http.request(method, url, json=body, headers=headers) as response:
                self._heard(response.headers.get("Date", ""))
                if response.status >= 300:
                    words = (await response.text())[:200]
                    raise FlyctlError(f"the Machines API answers {response.status} to {what}: {words}")
                return msgspec.json.decode(await response.read() or b"null")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FlyctlError(
                f"the Machines API does not answer ({type(error).__name__})", hint="Is the network there?"
            ) from error
        except msgspec.DecodeError as error:
            raise FlyctlError(
                f"the Machines API answers something else than JSON to {what}",
                hint="Is there a proxy between?",
            ) from error


def authorization(token: str, *, macaroons_only: bool = False) -> str:
    """Write the header as flyctl does (superfly/fly-go `tokens`): macaroons have a scheme of their own.

    `macaroons_only`: for the Machines API, which takes no other tokens beside them.
    """
    every = [each.strip() for each in token.split(",")]
    macaroons = [each for each in every if each.startswith(_MACAROONS)]
    if not macaroons:
        return f"Bearer {','.join(every)}"
    others = [] if macaroons_only else [each for each in every if each not in macaroons]
    return f"FlyV1 {','.join((*macaroons, *others))}"
