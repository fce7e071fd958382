"""What a tag means right now: Fly's GraphQL, by the query that flyctl itself resolves images with.

A deploy names its image by digest, so that what a machine has pulled can be compared with what was meant.
"""

from __future__ import annotations

import os
from typing import Final

import aiohttp
import msgspec

from myhealth_cli.deploy.errors import FlyctlError
from myhealth_cli.deploy.machines_api import authorization

_PUBLIC: Final = "https://api.fly.io"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_QUERY: Final = (
    "query ($appName: String!, $imageRef: String!) "
    "{ app(name: $appName) { id image(ref: $imageRef) { id digest ref } } }"
)


class _Image(msgspec.Struct, frozen=True):
    digest: str


class _App(msgspec.Struct, frozen=True):
    image: _Image | None = None


class _Data(msgspec.Struct, frozen=True):
    app: _App | None = None


class _Answer(msgspec.Struct, frozen=True):
    data: _Data | None = None


async def pinned(token: str, app: str, ref: str) -> str:
    """Return `ref` with the digest it means for an app now. Raises FlyctlError: there is no such image."""
    if "@" in ref:
        return ref
    url = (os.environ.get("FLY_API_BASE_URL") or _PUBLIC).rstrip("/") + "/graphql"
    question = {"query": _QUERY, "variables": {"appName": app, "imageRef": ref}}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, headers={"Authorization": authorization(token)}) as http,
            http.post(url, json=question) as response,
        ):
            answer = msgspec.json.decode(await response.read(), type=_Answer)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        raise FlyctlError(
            f"Fly does not say what {ref} is ({type(error).__name__})", hint="Is the network there?"
        ) from error
    found = answer.data.app.image if answer.data and answer.data.app else None
    if found is None:
        raise FlyctlError(f"there is no image {ref}, or {app} may not have it", hint="push it first")
    return f"{ref}@{found.digest}"
