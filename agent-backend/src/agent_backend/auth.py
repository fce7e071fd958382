"""A bearer token becomes a Principal.

Tokens are Supabase's: ES256 or RS256, checked against a JWKS, and HS256 only while a project migrates from
the legacy shared secret (AUTH_HS256_SECRET). `agent-backend token` signs with a local key whose JWKS the
server reads from a file: the same code either way. What is decided here and why: docs/design/identity.md.

Rules: RFC 7519 (claims), RFC 8725 (pin the algorithms, check issuer and audience), RFC 7517 (JWKS).
PyJWT and aiohttp are imported at the first use: the boot does not wait for them.
"""

from __future__ import annotations

import asyncio
import base64
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

from agent_backend.errors import ExpiredToken, Forbidden, Unauthorized, Unavailable
from agent_backend.settings import Secret
from agent_backend.telemetry import Log, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader
    from jwt import PyJWK

LEEWAY_SECONDS = 10
"""A machine that was suspended wakes with a clock that is seconds behind."""

MAX_LIFE_SECONDS = 7 * 86_400
"""The longest life Supabase lets a token have; one that claims more is not from there, or not meant to be."""

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

    @property
    def streams_until(self) -> float:
        """When what was opened with this token must have ended, as seconds since 1970."""
        return self.expires_at.timestamp() + LEEWAY_SECONDS


def bearer(authorization: str | None) -> str:
    """Return the token of an Authorization header. Raises Unauthorized."""
    if authorization is None:
        raise Unauthorized("This needs a bearer token in the Authorization header.")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip(" "):
        raise Unauthorized("The Authorization header is not of the form `Bearer TOKEN`.")
    return token.strip(" ")


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
        self,
        *,
        jwks_url: str,
        issuer: str,
        audience: str,
        last_known: LastKnown | None = None,
        hs256_secret: Secret | None = None,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._hs256_secret = hs256_secret or None
        self._verified: dict[bytes, _Verified] = {}
        # A key was withdrawn: what it signed must be looked at again.
        self._keys = _Keys(jwks_url, last_known, on_withdrawal=self._verified.clear)

    def known(self, token: str) -> Principal | None:
        """Return whom a token names that was checked a short while ago; None: it has to be checked."""
        if len(token) > _MAX_TOKEN or not token.isascii():
            return None
        known = self._verified.get(hashlib.sha256(token.encode()).digest())
        return known.principal if known is not None and time.time() < known.until else None

    async def authenticate(self, token: str) -> Principal:
        """Return whom the token names.

        Raises Unauthorized (ExpiredToken if it once was valid), Forbidden for who has signed in anonymously,
        or Unavailable while there are no keys to check it with.
        """
        known = self.known(token)
        if known is not None:
            return known
        if len(token) > _MAX_TOKEN or not token.isascii():
            raise _refused()
        now = time.time()
        digest = hashlib.sha256(token.encode()).digest()
        principal = await self._verify(token)
        # Not until the token's end: a key that was withdrawn must stop working.
        until = min(principal.expires_at.timestamp() + LEEWAY_SECONDS, now + _KEYS_SECONDS)
        if len(self._verified) >= _CACHED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = _Verified(principal, until)
        return principal

    def forget(self, user_id: UUID) -> None:
        """Drop the tokens of a user that were checked; they are checked anew when they come again."""
        for digest in [each for each, known in self._verified.items() if known.principal.user_id == user_id]:
            del self._verified[digest]

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
            header = _header(token)
        except (ValueError, RecursionError):
            raise _refused() from None
        key, algorithm = await self._key(header)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "sub", "iss", "aud", "role"]},
            )
            return _principal(claims, time.time())
        except jwt.ExpiredSignatureError:
            raise ExpiredToken("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError):
            raise _refused() from None

    async def _key(self, header: dict[str, Any]) -> tuple[PyJWK | str, str]:
        """Return the key a token says it is signed with, and the one algorithm that goes with it.

        The shared secret checks HS256 and nothing else does; a published key never checks HS256: so nobody's
        public key can serve as a secret. Raises Unauthorized, Unavailable.
        """
        if header.get("alg") == "HS256":
            if self._hs256_secret is None:
                raise _refused()
            return self._hs256_secret.reveal(), "HS256"
        key = await self._keys.find(header.get("kid"))
        if key is None or header.get("alg") != key.algorithm_name:
            raise _refused()
        return key, key.algorithm_name


def _header(token: str) -> dict[str, Any]:
    """Return the header of a token in the one form a token has.

    Base64 with other characters or stray bits, and JSON that says a thing twice, can be read in more than
    one way; so they are not read at all. Raises ValueError, RecursionError.
    """
    import json  # noqa: PLC0415 - see _verify

    header, payload, _ = [_canonical(part) for part in token.split(".")]
    read, _claims = [
        # As text, or Python would guess the encoding: JSON in a token is UTF-8 (RFC 7519, 7.1).
        json.loads(each.decode(), object_pairs_hook=_each_once, parse_constant=_no_number)
        for each in (header, payload)
    ]
    if not isinstance(read, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as for other malformed tokens
    return read


def _canonical(part: str) -> bytes:
    decoded = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise ValueError("base64 in another form than the one that is written")
    return decoded


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _principal(claims: dict[str, Any], now: float) -> Principal:
    """Read the claims PyJWT leaves to us. Raises ValueError, Forbidden."""
    ends, begins = _seconds(claims["exp"]), _seconds(claims["iat"])
    if ends - min(begins, now) > MAX_LIFE_SECONDS + LEEWAY_SECONDS:
        raise ValueError("a longer life than Supabase gives")
    if claims["role"] != "authenticated":
        raise ValueError("not a user's: anon and service_role tokens name nobody")
    if claims.get("is_anonymous") not in (None, False):
        raise Forbidden("This needs an account: an anonymous sign-in is not enough.")
    user_id = UUID(claims["sub"])
    if str(user_id) != claims["sub"].lower():
        raise ValueError("a UUID in another form than the one it is written in")
    return Principal(user_id, datetime.fromtimestamp(ends, UTC))


def _seconds(value: object) -> float:
    """Return a NumericDate (RFC 7519); PyJWT would read the text "1" and true as well."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("not a number")
    return float(value)


def _refused() -> Unauthorized:
    """Say nothing about why: whoever makes up tokens must learn nothing."""
    return Unauthorized("The token is not valid.")


class _Keys:
    """The signing keys of one JWKS, fetched when needed and kept for ten minutes.

    Without any, because the issuer is away since before we started, the last known ones serve; the issuer
    is asked on, as often as for an unknown key.
    """

    def __init__(self, url: str, last_known: LastKnown | None, on_withdrawal: Callable[[], None]) -> None:
        self._url = url
        self._last_known = last_known
        self._on_withdrawal = on_withdrawal
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = float("-inf")
        self._fetched_on = float("-inf")
        """The same on the wall clock: the monotonic one stands still while a machine is suspended."""
        self._tried_at = float("-inf")
        self._answered_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: object) -> PyJWK | None:
        """Return the key of this id, asking for new keys if it is unknown. Raises Unavailable."""
        await self.fresh()
        if not isinstance(kid, str):
            return None
        if kid not in self._keys:
            now = time.monotonic()
            # Who comes while the keys are being fetched waits for them: the new one may be among them.
            if self._fetching.locked() or now - self._tried_at > _REFETCH_SECONDS:
                await self._fetch(older_than=now)
        return self._keys.get(kid)

    async def fresh(self) -> None:
        """Make sure that keys are there. Old ones serve on while new ones cannot be had."""
        now = time.monotonic()
        if max(now - self._fetched_at, time.time() - self._fetched_on) < _KEYS_SECONDS:
            return
        if not self._keys or now - self._tried_at > _REFETCH_SECONDS:
            await self._fetch(older_than=now)

    async def _fetch(self, older_than: float) -> None:
        async with self._fetching:
            if self._answered_at > older_than:  # what somebody else asked for has come while we waited
                if self._keys:
                    return
                raise _no_keys()
            self._tried_at = time.monotonic()
            try:
                async with asyncio.timeout(5):
                    document = await _read(self._url)
                self._replace(_signing_keys(document))
            except (OSError, ValueError) as error:
                metrics.keys_fetch_failures += 1
                log.warning("keys_fetch_failed", error=error, host=urlsplit(self._url).hostname or "file")
                if not self._keys and not await self._recalled():
                    raise _no_keys() from error
            else:
                # Also one without keys: what was withdrawn must not come back.
                if self._last_known is not None:
                    await self._last_known.save(document)
            finally:
                self._answered_at = time.monotonic()

    def _replace(self, keys: dict[str, PyJWK]) -> None:
        withdrawn = self._keys.keys() - keys.keys()
        self._keys = keys
        self._fetched_at, self._fetched_on = time.monotonic(), time.time()
        if withdrawn:
            log.info("keys_withdrawn", count=len(withdrawn))
            self._on_withdrawal()

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
