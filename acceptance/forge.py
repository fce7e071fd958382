"""Tokens as attackers make them, and the few odd ones that are good all the same.

Everything is built by hand from bytes, because honest libraries refuse to. Seeded: the same seed, the same
places. The catalogue follows RFC 8725 and what has gone wrong in JWT libraries before.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

Json: TypeAlias = dict[str, Any]
Signer: TypeAlias = Callable[[bytes], bytes]

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2)."""


class Attempt(NamedTuple):
    """A token and what it tries."""

    what: str
    token: str


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Read base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def es(key: ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm, size: int = 32) -> Signer:
    """Sign as ES256 and its kin do: r and s, side by side."""

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def rs(key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm) -> Signer:
    """Sign as RS256 and its kin do."""
    return lambda data: key.sign(data, padding.PKCS1v15(), digest)


def hs(secret: bytes, digest: str = "sha256") -> Signer:
    """Sign as HS256 and its kin do."""
    return lambda data: hmac.digest(secret, data, digest)


def nothing(_data: bytes) -> bytes:
    """Do not sign."""
    return b""


class Forge:
    """Has the issuer's own keys, so that a token can be wrong in one thing only."""

    def __init__(self, ec_jwk: Json, rsa_jwk: Json, claims: Json, seed: int) -> None:
        ec_key, rsa_key = ECAlgorithm.from_jwk(ec_jwk), RSAAlgorithm.from_jwk(rsa_jwk)
        assert isinstance(ec_key, ec.EllipticCurvePrivateKey)
        assert isinstance(rsa_key, rsa.RSAPrivateKey)
        self.ec, self.rsa = ec_key, rsa_key
        self.ec_kid, self.rsa_kid = ec_jwk["kid"], rsa_jwk["kid"]
        self._public = [{n: v for n, v in jwk.items() if n != "d"} for jwk in (ec_jwk, rsa_jwk)]
        self._claims = claims
        self.random = random.Random(seed)
        self.es256, self.rs256 = es(ec_key, hashes.SHA256()), rs(rsa_key, hashes.SHA256())

    # --- parts ---

    def claims(self, **changes: Any) -> Json:
        """Return good claims of now, changed; None removes one."""
        now = int(time.time())
        made = {**self._claims, "iat": now, "exp": now + 3600, **changes}
        return {name: value for name, value in made.items() if value is not None}

    def header(self, **changes: Any) -> Json:
        """Return a good header, changed; None removes a member."""
        made = {"alg": "ES256", "kid": self.ec_kid, "typ": "JWT", **changes}
        return {name: value for name, value in made.items() if value is not None}

    def token(
        self,
        header: Json | bytes | None = None,
        claims: Json | bytes | None = None,
        sign: Signer | None = None,
    ) -> str:
        """Put a token together; what is not given is good."""
        head = self.header() if header is None else header
        body = self.claims() if claims is None else claims
        parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (head, body)]
        signed = ".".join(b64(each) for each in parts)
        return f"{signed}.{b64((sign or self.es256)(signed.encode()))}"

    # --- good ones ---

    def good(self) -> Iterator[Attempt]:
        """Yield tokens that look odd and are the issuer's: they must be taken."""
        now = int(time.time())
        rsa_header = self.header(alg="RS256", kid=self.rsa_kid)
        yield Attempt("plain", self.token())
        yield Attempt("plain, RSA", self.token(rsa_header, sign=self.rs256))
        yield Attempt("members in another order", self.token(dict(reversed(self.header().items()))))
        yield Attempt("no typ", self.token(self.header(typ=None)))
        yield Attempt("unknown header members", self.token(self.header(x=[1, {"y": None}])))
        yield Attempt("spaced JSON", self.token(claims=json.dumps(self.claims(), indent=4).encode()))
        yield Attempt("text beyond ASCII", self.token(claims=self.claims(user_metadata={"name": "Zoë 🏃"})))
        yield Attempt("several audiences", self.token(claims=self.claims(aud=["other", "authenticated"])))
        yield Attempt("a week", self.token(claims=self.claims(exp=now + 604_800)))
        yield Attempt("ended, within the leeway", self.token(claims=self.claims(exp=now - 5)))
        yield Attempt("begins within the leeway", self.token(claims=self.claims(iat=now + 5, nbf=now + 5)))
        yield Attempt("fractions of seconds", self.token(claims=self.claims(exp=now + 60.5, iat=now - 0.5)))
        yield Attempt(
            "an address of its key that is ignored", self.token(self.header(jku="http://127.0.0.1:1/"))
        )
        yield Attempt("the other of the two signatures ECDSA allows", self._other_signature())

    def _other_signature(self) -> str:
        head, _, signature = self.token().rpartition(".")
        raw = unb64(signature)
        s = _ORDER - int.from_bytes(raw[32:], "big")
        return f"{head}.{b64(raw[:32] + s.to_bytes(32, 'big'))}"

    # --- bad ones ---

    def bad(self) -> Iterator[Attempt]:
        """Yield tokens that must be refused, each for one reason."""
        for family in (
            self._unsigned,
            self._confused,
            self._other_keys,
            self._key_ids,
            self._headers,
            self._times,
            self._names,
            self._signatures,
            self._shapes,
            self._texts,
        ):
            for what, token in family():
                yield Attempt(f"{family.__name__.strip('_')}: {what}", token)

    def _unsigned(self) -> Iterator[Attempt]:
        for alg in (
            "none",
            "None",
            "NONE",
            "nOnE",
            "none ",
            " none",
            "",
            "null",
            "NoNe\t",
            "\u006eone",
            "\uff4eone",
        ):
            for sign in (nothing, self.es256):
                yield Attempt(f"alg {alg!r}", self.token(self.header(alg=alg), sign=sign))
        for alg in (None, 0, True, [], ["none"], {"alg": "none"}, ["ES256"], 256):
            yield Attempt(f"alg {alg!r}", self.token(self.header(alg=alg), sign=nothing))
        head, _, _ = self.token().rpartition(".")
        yield Attempt("signature left out", head + ".")
        yield Attempt("signature and dot left out", head)

    def _confused(self) -> Iterator[Attempt]:
        """Yield tokens signed with the public key as a shared secret, in every form one may hold it in."""
        for kid, key, jwk in (
            (self.ec_kid, self.ec, self._public[0]),
            (self.rsa_kid, self.rsa, self._public[1]),
        ):
            public = key.public_key()
            info = serialization.PublicFormat.SubjectPublicKeyInfo
            pem = public.public_bytes(serialization.Encoding.PEM, info)
            secrets = [
                pem,
                pem.strip(),
                pem.replace(b"\n", b"\r\n"),
                public.public_bytes(serialization.Encoding.DER, info),
            ]
            secrets += [
                json.dumps(jwk).encode(),
                json.dumps(jwk, separators=(",", ":")).encode(),
                kid.encode(),
            ]
            secrets += [unb64(jwk.get("x") or jwk["n"]), (jwk.get("x") or jwk["n"]).encode(), b"", b"secret"]
            for n, secret in enumerate(secrets):
                for alg, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
                    yield Attempt(
                        f"{alg} secret {n}",
                        self.token(self.header(alg=alg, kid=kid), sign=hs(secret, digest)),
                    )
                yield Attempt(
                    f"no kid, secret {n}", self.token(self.header(alg="HS256", kid=None), sign=hs(secret))
                )
                own = "ES256" if kid == self.ec_kid else "RS256"
                yield Attempt(
                    f"{own} in name, {n}", self.token(self.header(alg=own, kid=kid), sign=hs(secret))
                )

    def _other_keys(self) -> Iterator[Attempt]:
        stranger, strange_rsa = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
        p384, p521, k1 = (
            ec.generate_private_key(curve()) for curve in (ec.SECP384R1, ec.SECP521R1, ec.SECP256K1)
        )
        rsa_header = self.header(alg="RS256", kid=self.rsa_kid)
        yield Attempt("a stranger's", self.token(sign=es(stranger, hashes.SHA256())))
        yield Attempt("a stranger's RSA", self.token(rsa_header, sign=rs(strange_rsa, hashes.SHA256())))
        yield Attempt("P-384", self.token(self.header(alg="ES384"), sign=es(p384, hashes.SHA384(), 48)))
        yield Attempt("P-521", self.token(self.header(alg="ES512"), sign=es(p521, hashes.SHA512(), 66)))
        yield Attempt("secp256k1", self.token(self.header(alg="ES256K"), sign=es(k1, hashes.SHA256())))
        yield Attempt("secp256k1 as ES256", self.token(sign=es(k1, hashes.SHA256())))
        yield Attempt("P-384 as ES256", self.token(sign=es(p384, hashes.SHA384(), 48)))
        yield Attempt(
            "our EC key, ES384", self.token(self.header(alg="ES384"), sign=es(self.ec, hashes.SHA384()))
        )
        yield Attempt("our EC key, other hash", self.token(sign=es(self.ec, hashes.SHA384())))
        for alg, digest in (("RS384", hashes.SHA384()), ("RS512", hashes.SHA512())):
            yield Attempt(alg, self.token(self.header(alg=alg, kid=self.rsa_kid), sign=rs(self.rsa, digest)))
        for length in (padding.PSS.DIGEST_LENGTH, padding.PSS.MAX_LENGTH):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), length)

            def sign(data: bytes, pss: padding.PSS = pss) -> bytes:
                return self.rsa.sign(data, pss, hashes.SHA256())

            for alg in ("PS256", "RS256"):
                yield Attempt(f"PSS as {alg}", self.token(self.header(alg=alg, kid=self.rsa_kid), sign=sign))
        yield Attempt("RSA key, ES256 header", self.token(self.header(kid=self.rsa_kid), sign=self.rs256))
        yield Attempt("EC key, RS256 header", self.token(self.header(alg="RS256"), sign=self.es256))
        yield Attempt("the ids swapped", self.token(self.header(kid=self.rsa_kid)))
        for alg in ("EdDSA", "ES256 ", "es256", "ES-256", "RSA-OAEP", "dir", "A256GCM", "HS1", "ES256\x00"):
            yield Attempt(f"alg {alg!r}", self.token(self.header(alg=alg)))

    def _key_ids(self) -> Iterator[Attempt]:
        odd: list[Any] = [
            None,
            "",
            " ",
            self.ec_kid + " ",
            self.ec_kid.upper(),
            self.ec_kid[:-1],
            self.ec_kid * 2,
        ]
        odd += [
            "../../../../dev/null",
            "/etc/passwd",
            "..\\..\\windows",
            "file:///dev/null",
            "http://127.0.0.1:1/",
        ]
        odd += [
            "' OR '1'='1",
            "x' UNION SELECT 'key'--",
            "$(id)",
            "`id`",
            "%00",
            "\x00",
            "{{7*7}}",
            "__proto__",
        ]
        odd += [
            0,
            1,
            -1,
            1.5,
            True,
            False,
            [],
            [self.ec_kid],
            {},
            {"kid": self.ec_kid},
            "k" * 3000,
            "🔑",
            "\ud800",
        ]
        for kid in odd:
            header = self.header(kid=kid)
            yield Attempt(f"kid {str(kid)[:20]!a}", self.token(header))
            yield Attempt(
                f"kid {str(kid)[:20]!a}, unsigned", self.token({**header, "alg": "none"}, sign=nothing)
            )
            yield Attempt(
                f"kid {str(kid)[:20]!a}, empty secret", self.token({**header, "alg": "HS256"}, sign=hs(b""))
            )

    def _headers(self) -> Iterator[Attempt]:
        stranger = ec.generate_private_key(ec.SECP256R1())
        sign = es(stranger, hashes.SHA256())
        jwk = {**ECAlgorithm.to_jwk(stranger.public_key(), as_dict=True), "kid": "own", "alg": "ES256"}
        document = "data:application/json," + json.dumps({"keys": [jwk]})
        for kid in ("own", self.ec_kid, None):
            for more in (
                {"jwk": jwk},
                {"jku": "http://127.0.0.1:1/jwks.json"},
                {"jku": document},
                {"x5u": "http://127.0.0.1:1/cert.pem"},
                {"x5c": [b64(b"certificate")]},
                {"x5t": "AAAA"},
                {"jwks": {"keys": [jwk]}},
                {"iss": "http://127.0.0.1:1"},
            ):
                yield Attempt(
                    f"its own {next(iter(more))}", self.token(self.header(kid=kid, **more), sign=sign)
                )
        for crit in (["exp"], ["b64"], ["x"], [], "exp", None, [1], ["http://example.com/x"]):
            header = {**self.header(), "crit": crit, "b64": False, "x": 1}
            yield Attempt(f"crit {crit!r}", self.token(header))
        yield Attempt("an unencoded payload", self.token({**self.header(), "b64": False, "crit": ["b64"]}))
        yield Attempt("encrypted in name", self.token(self.header(alg="dir", enc="A256GCM")))

    def _times(self) -> Iterator[Attempt]:
        now = int(time.time())
        odd: list[Any] = [
            "",
            "never",
            str(now + 600),
            f"{now + 600}.0",
            [now + 600],
            {"t": now + 600},
            True,
            False,
        ]
        odd += [-1, 0, 1, now - 60, now - 3600, -(2**63), float("nan"), float("inf"), -float("inf")]
        for value in (*odd, None, now + 8 * 86400, 2**31, 2**53, 2**63, 10**30, 10**300, 1e308, "1e400"):
            yield Attempt(f"exp {str(value)[:20]}", self.token(claims=self.claims(exp=value)))
        for name in ("iat", "nbf"):
            for value in (now + 60, now + 86400, 2**40, 10**300, "now", [], {}, float("nan"), float("inf")):
                yield Attempt(f"{name} {str(value)[:20]}", self.token(claims=self.claims(**{name: value})))
        for value in (None, 0, -1, now - 8 * 86400, str(now), True):
            yield Attempt(f"iat {value}", self.token(claims=self.claims(iat=value)))
        raw = json.dumps(self.claims()).encode()
        for text in (b"1e400", b"NaN", b"Infinity", b"9" * 5000, b"0x7fffffff", b"+1", b"01"):
            changed = raw.replace(str(self.claims()["exp"]).encode(), text)
            yield Attempt(f"exp as {text[:10]!r}", self.token(claims=changed))

    def _names(self) -> Iterator[Attempt]:
        issuer, sub = self._claims["iss"], self._claims["sub"]
        for iss in (
            None,
            "",
            issuer + "/",
            issuer + ".evil.example",
            issuer.upper(),
            "supabase",
            [issuer],
            {},
            1,
        ):
            yield Attempt(f"iss {iss!r}", self.token(claims=self.claims(iss=iss)))
        for aud in (
            None,
            "",
            "anon",
            "Authenticated",
            "authenticated ",
            [],
            ["anon"],
            [["authenticated"]],
            {},
            1,
            [1],
        ):
            yield Attempt(f"aud {aud!r}", self.token(claims=self.claims(aud=aud)))
        odd: list[Any] = [
            None,
            "",
            " ",
            "alice",
            sub + " ",
            " " + sub,
            "{" + sub + "}",
            "urn:uuid:" + sub,
            1,
            True,
            [],
        ]
        odd += [
            [sub],
            {"sub": sub},
            sub.replace("-", ""),
            sub[:-1],
            sub + "0",
            "' OR 1=1--",
            "*",
            "../" + sub,
            "\x00",
        ]
        for value in odd:
            yield Attempt(f"sub {value!a}", self.token(claims=self.claims(sub=value)))
        for role in (
            None,
            "",
            "anon",
            "service_role",
            "postgres",
            "supabase_admin",
            "Authenticated",
            ["authenticated"],
            1,
        ):
            yield Attempt(f"role {role!r}", self.token(claims=self.claims(role=role)))
        for flag in (True, "true", 1, "false", [], {}, [False]):
            yield Attempt(f"is_anonymous {flag!r}", self.token(claims=self.claims(is_anonymous=flag)))
        for name in ("sub", "exp", "role", "iss", "aud"):
            whole = json.dumps(self.claims())
            twice = json.dumps({name: self.claims()[name]})
            yield Attempt(f"{name} twice", self.token(claims=(whole[:-1] + "," + twice[1:]).encode()))
        head = json.dumps(self.header())
        yield Attempt("alg twice", self.token((head[:-1] + ',"alg":"ES256"}').encode()))
        yield Attempt("alg none, then ES256", self.token(('{"alg":"none",' + head[1:]).encode()))

    def _signatures(self) -> Iterator[Attempt]:
        head, _, signature = self.token().rpartition(".")
        raw = unb64(signature)
        for n in (0, 1, 16, 31, 32, 33, 48, 63):
            yield Attempt(f"cut to {n}", f"{head}.{b64(raw[:n])}")
        for what, other in (
            ("doubled", raw * 2),
            ("a zero before", b"\x00" + raw),
            ("a zero after", raw + b"\x00"),
            ("zeros", bytes(64)),
            ("r is zero", bytes(32) + raw[32:]),
            ("s is zero", raw[:32] + bytes(32)),
            ("ones", b"\xff" * 64),
            ("r and s swapped", raw[32:] + raw[:32]),
            ("r is the order", _ORDER.to_bytes(32, "big") + raw[32:]),
            ("DER", self.ec.sign(head.encode(), ec.ECDSA(hashes.SHA256()))),
        ):
            yield Attempt(what, f"{head}.{b64(other)}")
        other_head, _, _ = self.token(
            claims=self.claims(sub="0199ab12-0000-7000-8000-000000000009")
        ).rpartition(".")
        yield Attempt("of another token", f"{other_head}.{signature}")
        rsa_head, _, rsa_signature = self.token(
            self.header(alg="RS256", kid=self.rsa_kid), sign=self.rs256
        ).rpartition(".")
        raw = unb64(rsa_signature)
        for n in (0, 1, 128, 255):
            yield Attempt(f"RSA, cut to {n}", f"{rsa_head}.{b64(raw[:n])}")
        for what, other in (("zeros", bytes(256)), ("ones", b"\xff" * 256), ("one", bytes(255) + b"\x01")):
            yield Attempt(f"RSA {what}", f"{rsa_head}.{b64(other)}")

    def _shapes(self) -> Iterator[Attempt]:
        good = self.token()
        head, body, signature = good.split(".")
        for text in (
            *("", ".", "..", "...", "a.b.c", "....", good + ".", "." + good, good + "." + signature),
            *(
                f"{head}.{body}.{signature}.{body}.{signature}",
                f"{head}..{signature}",
                f".{body}.{signature}",
            ),
            *(f"{body}.{head}.{signature}", good.replace(".", ","), good.replace(".", ":"), head, body),
        ):
            yield Attempt(f"shape {text[:12]!r}", text)
        for part in (
            b"",
            b"null",
            b"[]",
            b"1",
            b'"x"',
            b"{",
            b"{}",
            b"\xff\xfe",
            b"[" * 3000,
            b'{"a":' * 900,
        ):
            yield Attempt(f"header {part[:8]!r}", self.token(part))
            yield Attempt(f"claims {part[:8]!r}", self.token(claims=part))
        for codec, coded in (("utf-16", "utf-16"), ("utf-32", "utf-32"), ("a BOM", "utf-8-sig")):
            yield Attempt(f"claims in {codec}", self.token(claims=json.dumps(self.claims()).encode(coded)))
        bomb = zlib.compress(b"0" * 4_000_000)
        yield Attempt("a zip bomb", self.token(self.header(zip="DEF"), bomb))
        yield Attempt("a zip bomb in the header", self.token(bomb))
        yield Attempt("huge", self.token(claims=self.claims(user_metadata="x" * 9_000)))
        yield Attempt("a huge header", self.token(self.header(x="y" * 9_000)))
        digest = hashlib.sha256(good.encode()).hexdigest()
        yield Attempt("its digest", digest)

    def _texts(self) -> Iterator[Attempt]:
        """Other spellings of a good token: decoders that forgive would read them the same."""
        good = self.token()
        head, body, signature = good.split(".")
        for n in range(1, 4):
            yield Attempt(f"padded {n}", good + "=" * n)
            yield Attempt(f"header padded {n}", f"{head}{'=' * n}.{body}.{signature}")
        for char in "!*'()~@$ \t\u00a0\u200b\u2028é\uff1d%":
            middle = len(good) - len(signature) // 2
            yield Attempt(f"{char!a} inside", good[:middle] + char + good[middle:])
        for char in ("\u00a0", "\u200b", "\ufeff", "\u3000", "é", ",", ";", '"', "\\", "\u0085"):
            yield Attempt(f"{char!a} after", good + char)
            yield Attempt(f"{char!a} before", char + good)
        plain = base64.b64encode(unb64(signature)).decode().rstrip("=")
        if plain != signature:
            yield Attempt("the other alphabet", f"{head}.{body}.{plain}")
        yield Attempt("quoted", f'"{good}"')
        yield Attempt("percent-encoded", good.replace(".", "%2E"))
        yield Attempt("upper case", good.upper())
        yield Attempt("reversed", good[::-1])

    def flips(self, count: int) -> Iterator[Attempt]:
        """Yield good tokens with one bit of their text flipped: `count` anywhere, and at each part's tail."""
        tokens = [self.token(), self.token(self.header(alg="RS256", kid=self.rsa_kid), sign=self.rs256)]
        places = [
            (self.random.choice(tokens), self.random.random(), self.random.randrange(7)) for _ in range(count)
        ]
        for token, at, bit in places:
            yield from _flipped(token, int(at * len(token)), bit)
        for token in tokens:
            ends = [n - 1 for n, char in enumerate(token + ".") if char == "."]
            for end in ends:
                for bit in range(7):
                    yield from _flipped(token, end, bit)


def _flipped(token: str, at: int, bit: int) -> Iterator[Attempt]:
    char = chr(ord(token[at]) ^ (1 << bit))
    if char.isprintable():  # the others cannot stand in a header
        yield Attempt(f"bit {bit} of character {at}", token[:at] + char + token[at + 1 :])
