"""A bearer token becomes a Principal.

Tokens are Supabase's (ES256 or RS256, checked against a JWKS). In development `agent-backend token` signs
them with a local key and the server reads that key's JWKS from a file: the same code either way.

Rules: RFC 7519 (claims), RFC 8725 (pin the algorithms, check issuer and audience), RFC 7517 (JWKS).
PyJWT and aiohttp are imported at the first use: the boot does not wait for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import UUID

import msgspec

from agent_backend.errors import Unauthorized, Unavailable
from agent_backend.telemetry import Log

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from jwt import PyJWK

LEEWAY_SECONDS = 10
"""A machine that was suspended wakes with a clock that is seconds behind."""

_MAX_TOKEN = 8192
_MAX_JWKS = 256 * 1024
_KEYS_SECONDS = 600
"""Supabase caches its JWKS as long, so a key is published before it signs."""
_REFETCH_SECONDS = 10
"""An unknown key id may ask for new keys this often: strangers can make up key ids."""
_CACHED_TOKENS = 4096

log = Log("auth")


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `expires_at` is when long streams have to end or to authenticate again."""

    user_id: UUID
    expires_at: datetime


def bearer(authorization: str | None) -> str:
    """Return the token of an Authorization header. Raises Unauthorized."""
    if authorization is None:
        raise Unauthorized("This needs a bearer token in the Authorization header.")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("The Authorization header is not of the form `Bearer TOKEN`.")
    return token.strip()


class _Verified(NamedTuple):
    principal: Principal
    until: float


class LastKnown(Protocol):
    """Where the last good JWKS outlives this process; neither method raises."""

    async def save(self, document: bytes) -> None:
        """Remember what was fetched and understood."""
        ...

    async def load(self) -> bytes | None:
        """Return the last one, unless it is too old."""
        ...


class Authenticator:
    """Checks tokens; remembers the ones it has checked, because a signature costs 0.1-0.2 ms of CPU."""

    def __init__(
        self, *, jwks_url: str, issuer: str, audience: str, last_known: LastKnown | None = None
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys = _Keys(jwks_url, last_known)
        self._verified: dict[bytes, _Verified] = {}

    async def authenticate(self, token: str) -> Principal:
        """Return whom the token names.

        Raises Unauthorized, or Unavailable while there are no keys to check it with.
        """
        if len(token) > _MAX_TOKEN or not token.isascii():
            raise _refused()
        now = time.time()
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None and now < known.until:
            return known.principal
        principal = await self._verify(token)
        # Not until the token's end: a key that was withdrawn must stop working.
        until = min(principal.expires_at.timestamp() + LEEWAY_SECONDS, now + _KEYS_SECONDS)
        if len(self._verified) >= _CACHED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = _Verified(principal, until)
        return principal

    async def warm(self) -> None:
        """Import what checking needs and fetch the keys; a failure only means that the first request pays."""
        import_module("jwt.algorithms")
        try:
            await self._keys.fresh()
        except Unavailable:
            log.warning("keys_not_fetched")

    async def _verify(self, token: str) -> Principal:
        import jwt  # noqa: PLC0415 - 60 ms that the boot must not wait for

        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused() from None
        key = await self._keys.find(header.get("kid"))
        if key is None or header.get("alg") != key.algorithm_name:
            raise _refused()
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            return _principal(claims)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError):
            raise _refused() from None


def _principal(claims: dict[str, Any]) -> Principal:
    return Principal(UUID(claims["sub"]), datetime.fromtimestamp(int(claims["exp"]), UTC))


def _refused() -> Unauthorized:
    """Say nothing about why: whoever makes up tokens must learn nothing."""
    return Unauthorized("The token is not valid.")


class _Keys:
    """The signing keys of one JWKS, fetched when needed and kept for ten minutes.

    Without any, because the issuer is away since before we started, the last known ones serve; the issuer
    is asked on, as often as for an unknown key.
    """

    def __init__(self, url: str, last_known: LastKnown | None) -> None:
        self._url = url
        self._last_known = last_known
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: object) -> PyJWK | None:
        """Return the key of this id, asking for new keys if it is unknown. Raises Unavailable."""
        await self.fresh()
        if not isinstance(kid, str):
            return None
        if kid not in self._keys and time.monotonic() - self._tried_at > _REFETCH_SECONDS:
            await self._fetch(older_than=time.monotonic())
        return self._keys.get(kid)

    async def fresh(self) -> None:
        """Make sure that keys are there. Old ones serve on while new ones cannot be had."""
        now = time.monotonic()
        if now - self._fetched_at < _KEYS_SECONDS:
            return
        if not self._keys or now - self._tried_at > _REFETCH_SECONDS:
            await self._fetch(older_than=now)

    async def _fetch(self, older_than: float) -> None:
        async with self._fetching:
            if self._tried_at > older_than:  # somebody else has asked while we waited
                if self._keys:
                    return
                raise _no_keys()
            self._tried_at = time.monotonic()
            try:
                async with asyncio.timeout(5):
                    document = await _read(self._url)
                self._keys = _signing_keys(document)
                self._fetched_at = time.monotonic()
            except (OSError, ValueError) as error:
                log.warning("keys_fetch_failed", error=error)
                if not self._keys and not await self._recalled():
                    raise _no_keys() from error
            else:
                # Also one without keys: what was withdrawn must not come back.
                if self._last_known is not None:
                    await self._last_known.save(document)

    async def _recalled(self) -> bool:
        """Take the last known keys; say whether there are any."""
        document = None if self._last_known is None else await self._last_known.load()
        if document is not None:
            try:
                self._keys = _signing_keys(document)
                log.warning("keys_recalled", count=len(self._keys))
            except ValueError as error:
                log.warning("keys_not_recalled", error=error)
        return bool(self._keys)


def _no_keys() -> Unavailable:
    return Unavailable("The keys that tokens are checked with cannot be read.")


async def _read(url: str) -> bytes:
    """Read a small document. Raises OSError or ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _read_file(Path(url2pathname(parts.path)))
    import aiohttp  # noqa: PLC0415 - 150 ms that the boot must not wait for

    try:
        async with aiohttp.ClientSession() as session, session.get(url, allow_redirects=False) as reply:
            if reply.status != 200:
                raise ValueError(f"status {reply.status}")
            return await _whole(reply.content)
    except aiohttp.ClientError as error:
        raise OSError("the JWKS cannot be fetched") from error


async def _whole(content: StreamReader) -> bytes:
    document = bytearray()
    async for piece in content.iter_any():
        document += piece
        if len(document) > _MAX_JWKS:
            raise ValueError("too large")
    return bytes(document)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_JWKS)


def _signing_keys(document: bytes) -> dict[str, PyJWK]:
    """Return the keys that may sign, by id; anything but ES256 and RS256 keys is left out."""
    import jwt  # noqa: PLC0415 - see _verify

    found: dict[str, PyJWK] = {}
    keys = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    for entry in keys if isinstance(keys, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            continue
        algorithm = {"EC": "ES256", "RSA": "RS256"}.get(str(entry.get("kty")))
        fits = entry.get("alg", algorithm) == algorithm and entry.get("use", "sig") == "sig"
        if algorithm is None or not fits or (algorithm == "ES256" and entry.get("crv") != "P-256"):
            continue
        try:
            found[entry["kid"]] = jwt.PyJWK(entry, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            log.warning("key_unusable")
    return found
