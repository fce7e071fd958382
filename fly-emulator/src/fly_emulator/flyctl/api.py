"""The three APIs flyctl talks to, as it calls them: GraphQL, uiex (releases, logs), flaps (machines)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.http import Url, ask

NONCE: Final = "fly-machine-lease-nonce"
VERSION: Final = "0.4.87-emulator"
"""The version of flyctl this stands for (`scripts/flyctl.py`)."""
_SECONDS: Final = 60.0
_SHOWN: Final = 2000


class Api:
    """Calls the emulator. Every method raises ApiError when it refuses, FlyctlError when it is not there."""

    def __init__(self, token: str, env: Mapping[str, str] = os.environ) -> None:
        self._env = env
        self._headers = {"Authorization": _authorization(token), "User-Agent": f"flyctl/{VERSION}"}

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the `data` of a query."""
        url = self._url("FLY_API_BASE_URL")
        body = {"query": query, "variables": variables or None}
        try:
            status, text = ask(url, "POST", "/graphql", headers=self._headers, body=body, seconds=_SECONDS)
        except OSError as error:
            reason = f'Post "{url.text}/graphql": {error.strerror or error}'
            raise FlyctlError(f"failed to run {query}: {reason}") from error
        if status != 200:
            raise ApiError(f"failed to run {query}: server returned a non-200 status code: {status}", status)
        answer = json.loads(text)
        if errors := answer.get("errors"):
            raise FlyctlError(f"failed to run {query}: {errors[0]['message']}")
        return answer["data"]

    def flaps(
        self, method: str, path: str, body: Any = None, *, nonce: str = "", seconds: float = _SECONDS
    ) -> Any:
        """Call the Machines API below `/v1`; return its JSON, None where there is none."""
        return self._rest("FLY_FLAPS_BASE_URL", method, f"/v1{path}", body, nonce=nonce, seconds=seconds)

    @property
    def machines_url(self) -> str:
        """Where the Machines API is."""
        return f"{self._url('FLY_FLAPS_BASE_URL').text}/v1"

    def uiex(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API of releases, organisations and logs below `/api/v1`."""
        return self._rest("FLY_UIEX_BASE_URL", method, f"/api/v1{path}", body)

    def _rest(
        self, name: str, method: str, path: str, body: Any, *, nonce: str = "", seconds: float = _SECONDS
    ) -> Any:
        url = self._url(name)
        headers = {**self._headers, NONCE: nonce} if nonce else self._headers
        try:
            status, text = ask(url, method, path, headers=headers, body=body, seconds=seconds)
        except OSError as error:
            raise FlyctlError(
                f'{method.capitalize()} "{url.text}{path}": {error.strerror or error}'
            ) from error
        if status >= 300:
            raise ApiError(_reason(text), status)
        return json.loads(text) if text.strip() else None

    def _url(self, name: str) -> Url:
        try:
            return Url(self._env.get(name, ""))
        except ValueError as error:
            raise FlyctlError(
                f"{name}={self._env.get(name, '')!r} is not http://127.0.0.1:PORT",
                "This stands in for flyctl before `fly-emulator serve` alone, which prints its variables.",
            ) from error


def _reason(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.decode("utf-8", "replace")[:_SHOWN]


def _authorization(token: str) -> str:
    """Macaroons have a scheme of their own (superfly/fly-go `tokens`)."""
    return f"FlyV1 {token}" if token.startswith(("fm1r_", "fm1a_", "fm2_")) else f"Bearer {token}"
