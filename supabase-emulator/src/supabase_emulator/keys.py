"""Signing keys and their lifecycle: standby, current, previous, revoked.

As in Supabase's guide "JWT Signing Keys": a new key is published before it signs, rotating makes the standby
key the current one, the previous one is trusted until it is revoked. Keys are written down as JWKs, as
`supabase gen signing-key` does.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, cast
from uuid import uuid4

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from supabase_emulator.settings import Algorithm

KeyState: TypeAlias = Literal["standby", "current", "previous", "revoked"]

_PUBLIC: Final = frozenset({"kty", "kid", "alg", "crv", "x", "y", "n", "e"})
_RSA_BITS: Final = 2048


class SigningKey(msgspec.Struct, kw_only=True):
    """One key: its private JWK (with `kid` and `alg`) and what it is used for."""

    jwk: dict[str, str]
    state: KeyState

    @property
    def kid(self) -> str:
        """The id that tokens and the JWKS name it by."""
        return self.jwk["kid"]

    def public(self) -> dict[str, object]:
        """Return the public half as the JWKS shows it."""
        shown = {name: value for name, value in self.jwk.items() if name in _PUBLIC}
        return {**shown, "use": "sig", "key_ops": ["verify"], "ext": True}


def generate(algorithm: Algorithm, state: KeyState) -> SigningKey:
    """Make a key."""
    if algorithm == "ES256":
        made = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    else:
        made = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, _RSA_BITS), as_dict=True)
    members = {name: value for name, value in made.items() if isinstance(value, str)}
    return SigningKey(jwk={**members, "kid": str(uuid4()), "alg": algorithm}, state=state)


class KeyRing:
    """All keys of a project. `keys` is what the state file keeps."""

    def __init__(self, algorithm: Algorithm, keys: list[SigningKey] | None = None) -> None:
        self._loaded: dict[str, jwt.PyJWK] = {}
        self.algorithm: Algorithm = algorithm
        self.keys = keys or [generate(algorithm, "current"), generate(algorithm, "standby")]

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        return next(key for key in self.keys if key.state == "current")

    def jwks(self) -> dict[str, object]:
        """Return the JWKS: every key that is or will be trusted."""
        return {"keys": [key.public() for key in self.keys if key.state != "revoked"]}

    def rotate(self, algorithm: Algorithm | None = None, *, unannounced: bool = False) -> SigningKey:
        """Let the standby key sign, or (`unannounced`) one that no JWKS has shown; make a new standby key."""
        chosen = algorithm or self.algorithm
        standby = next((key for key in self.keys if key.state == "standby"), None)
        if standby is None or unannounced:
            standby = generate(chosen, "standby")
            self.keys.append(standby)
        self.current.state = "previous"
        standby.state = "current"
        if not any(key.state == "standby" for key in self.keys):
            self.keys.append(generate(chosen, "standby"))
        return standby

    def revoke_previous(self) -> list[str]:
        """Trust no previous key any more; return their ids."""
        previous = [key for key in self.keys if key.state == "previous"]
        for key in previous:
            key.state = "revoked"
        return [key.kid for key in previous]

    def sign(self, claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
        """Return a token of the current key."""
        key = self.current
        return jwt.encode(
            claims, self._key(key).key, key.jwk["alg"], headers={"kid": key.kid, **(headers or {})}
        )

    def verify(self, token: str, issuer: str) -> dict[str, Any]:
        """Return the claims of one of our tokens. Raises jwt.PyJWTError."""
        kid = jwt.get_unverified_header(token).get("kid")
        key = next((each for each in self.keys if each.kid == kid and each.state != "revoked"), None)
        if key is None:
            raise jwt.InvalidKeyError("unknown kid")
        public = jwt.PyJWK(cast("dict[str, Any]", key.public()), key.jwk["alg"])
        # When a token ends is looked at by who asks: the emulator's clock may be ahead.
        options: Any = {"verify_exp": False, "verify_iat": False}
        return jwt.decode(
            token, public, [key.jwk["alg"]], issuer=issuer, audience="authenticated", options=options
        )

    def _key(self, key: SigningKey) -> jwt.PyJWK:
        if key.kid not in self._loaded:
            self._loaded[key.kid] = jwt.PyJWK(key.jwk, key.jwk["alg"])
        return self._loaded[key.kid]
