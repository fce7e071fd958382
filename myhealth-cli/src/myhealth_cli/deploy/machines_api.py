"""The Machines API, for the one thing flyctl cannot do: metadata without restarting a machine, and leases."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import msgspec

from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from myhealth_cli.deploy.flyctl import Flyctl

_PUBLIC: Final = "https://api.machines.dev"
_NONCE: Final = "fly-machine-lease-nonce"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=20)
_LEASE_S: Final = 15
_SET_TRIES: Final = 3
_SET_PAUSE_S: Final = 0.5


async def token(fly: Flyctl, env: Mapping[str, str] = os.environ) -> str:
    """Return the token flyctl works with; it is never shown. Raises NothingChangedError."""
    if found := env.get("FLY_API_TOKEN", "").strip():
        return found
    try:
        return (await fly.run("auth", "token")).strip().splitlines()[-1]
    except (FlyctlError, IndexError) as error:
        raise NothingChangedError(
            "not logged in to Fly", hint="`fly auth login`, or set FLY_API_TOKEN"
        ) from error


class _Lease(msgspec.Struct, frozen=True):
    nonce: str
    expires_at: float = 0.0


class Lease(msgspec.Struct, frozen=True):
    """A lease that was taken at `at`, by Fly's clock (seconds since 1970): computers' clocks differ."""

    nonce: str
    at: float


class MachinesApi:
    """An async context manager. Every call raises FlyctlError when the API refuses or cannot be reached."""

    def __init__(self, token: str, url: str | None = None) -> None:
        self._url = (url or os.environ.get("FLY_FLAPS_BASE_URL") or _PUBLIC).rstrip("/")
        self.token = token
        self._headers = {"Authorization": authorization(token)}

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=_TIMEOUT, headers=self._headers)
        return self

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

    async def _ask(
        self, method: str, app: str, machine: str, what: str, body: object = None, *, nonce: str = ""
    ) -> Any:
        url = f"{self._url}/v1/apps/{app}/machines/{machine}/{what}"
        headers = {_NONCE: nonce} if nonce else {}
        try:
            async with self._http.request(method, url, json=body, headers=headers) as response:
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


def authorization(token: str) -> str:
    """Write the header as flyctl does: macaroons have a scheme of their own."""
    if token.startswith(("FlyV1 ", "Bearer ")):
        return token
    return f"FlyV1 {token}" if token.startswith(("fm1r_", "fm1a_", "fm2_")) else f"Bearer {token}"
