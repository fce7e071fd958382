"""Tokens for development: a local ES256 key, its JWKS beside it, and made-up users.

The server checks them through JWKS_URL like any other token. Refused outside development.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid5

import msgspec

from agent_backend.errors import OperatorError
from agent_backend.settings import Settings

_USERS = UUID("6f0d5c3a-9d0c-4a53-8f54-5d9a3c1c7e21")
"""Namespace of the made-up users' ids."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_SECONDS = 7 * 86400
"""What the server takes at most, as auth.MAX_LIFE_SECONDS says."""
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def user_id(name: str) -> UUID:
    """Return the id of the made-up user `name`: the same on every machine."""
    return uuid5(_USERS, name)


def seconds(text: str) -> int:
    """Read a duration such as `12h`. Raises OperatorError."""
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    duration = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < duration <= _MAX_SECONDS:
        raise OperatorError(
            f"--ttl {text[:20]!r} is not a duration of at most 7 days", hint="write it like 15m, 12h or 7d"
        )
    return duration


def issue(settings: Settings, user: str, ttl_seconds: int) -> str:
    """Return a token for the made-up user. Makes the key at the first call. Raises OperatorError."""
    if settings.environment != "development":
        raise OperatorError(
            f"tokens are not made in {settings.environment}",
            hint="sign in to get one; ENVIRONMENT says where we are",
        )
    if not _USER.fullmatch(user):
        raise OperatorError(
            f"--user {user[:80]!r} is not a user name", hint="use letters, digits and . _ @ -"
        )
    import jwt  # noqa: PLC0415 - the server imports this module's neighbours, never this

    pem, kid = _key(settings.dev_key_dir)
    now = int(time.time())
    claims = {
        "iss": settings.auth_issuer,
        "aud": settings.auth_audience,
        "sub": str(user_id(user)),
        "role": "authenticated",
        "iat": now,
        "exp": now + ttl_seconds,
    }
    return jwt.encode(claims, pem, "ES256", headers={"kid": kid})


def _key(folder: Path) -> tuple[bytes, str]:
    """Return the private key (PEM) and its id; both files are there afterwards."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = folder / "private-key.pem"
        if not private.exists():
            _keep_first(private, _new_key())
        pem = private.read_bytes()
        jwk = _public_jwk(pem)
        _replace(folder / "jwks.json", msgspec.json.encode({"keys": [jwk]}))
    except (OSError, ValueError, TypeError) as error:
        raise OperatorError(
            f"the development key in {folder} cannot be used ({type(error).__name__})",
            hint="remove the folder, or name another one in DEV_KEY_DIR",
        ) from error
    return pem, jwk["kid"]


def _new_key() -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see issue()
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see issue()

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_jwk(pem: bytes) -> dict[str, str]:
    """Return the public half as a JWK whose id is its thumbprint (RFC 7638)."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see issue()
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see issue()

    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an EC key")
    numbers = key.public_key().public_numbers()
    # The members in this order and without spaces are what the thumbprint is taken of.
    jwk = {"crv": "P-256", "kty": "EC", "x": _base64url(numbers.x), "y": _base64url(numbers.y)}
    thumbprint = hashlib.sha256(msgspec.json.encode(jwk)).digest()
    kid = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    return {**jwk, "kid": kid, "alg": "ES256", "use": "sig"}


def _base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


def _keep_first(path: Path, content: bytes) -> None:
    """Create a file of mode 600, whole or not at all; of two that try at once the first one wins."""
    temporary = _written(path.parent, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _replace(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        _written(path.parent, content).replace(path)


def _written(folder: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=folder)  # mode 600
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)
