from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from agent_backend import auth
from agent_backend.auth import Authenticator, bearer
from agent_backend.db.jwks import StoredKeys
from agent_backend.db.pool import Database
from agent_backend.errors import Forbidden, Unauthorized, Unavailable
from agent_backend.settings import Secret

USER = UUID("0199ab12-0000-7000-8000-000000000001")
ISSUER = "https://ref.supabase.co/auth/v1"
KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
STRANGER = ec.generate_private_key(ec.SECP256R1())
OTHER_CURVE = ec.generate_private_key(ec.SECP384R1())
PUBLIC_PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def jwk(key: PrivateKeyTypes, kid: str, **members: Any) -> dict[str, Any]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}
    assert isinstance(key, rsa.RSAPrivateKey)
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


JWKS = {
    "keys": [
        jwk(KEY, "k1", alg="ES256", use="sig"),
        jwk(RSA_KEY, "k2"),
        jwk(OTHER_CURVE, "p384"),
        jwk(STRANGER, "for-encryption", use="enc"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC"},
        "not a key",
    ]
}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {"sub": str(USER), "iss": ISSUER, "aud": "authenticated", "role": "authenticated"}
    # Those of `BAD` are made when the tests are collected, and used when their turn comes: minutes later.
    base |= {"iat": now, "exp": now + 86_400, "is_anonymous": False}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def token(
    payload: dict[str, Any] | None = None, key: Any = KEY, alg: str = "ES256", kid: str | None = "k1"
) -> str:
    headers = {"kid": kid} if kid is not None else {}
    return jwt.encode(claims() if payload is None else payload, key, alg, headers=headers)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def handmade(header: dict[str, Any], signature: bytes | None = None) -> str:
    """Put together what no honest library makes; by default signed with HMAC over the public key."""
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims()).encode())}"
    if signature is None:
        signature = hmac.digest(PUBLIC_PEM, signed.encode(), hashlib.sha256)
    return f"{signed}.{b64(signature)}"


def twice() -> str:
    """Sign a payload that names its user twice."""
    payload = json.dumps(claims())[:-1] + f', "sub": "{USER}"' + "}"
    return jwt.PyJWS().encode(payload.encode(), KEY, "ES256", headers={"kid": "k1"})


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(JWKS), encoding="utf-8")
    return path


@pytest.fixture
def authenticator(jwks_file: Path) -> Authenticator:
    return Authenticator(jwks_url=jwks_file.as_uri(), issuer=ISSUER, audience="authenticated")


@pytest.mark.parametrize(("key", "alg", "kid"), [(KEY, "ES256", "k1"), (RSA_KEY, "RS256", "k2")])
async def test_a_good_token_names_its_user_and_end(
    key: Any, alg: str, kid: str, authenticator: Authenticator
) -> None:
    payload = claims()
    principal = await authenticator.authenticate(token(payload, key, alg, kid))
    assert principal.user_id == USER
    assert principal.expires_at.timestamp() == payload["exp"]


NOW = int(time.time())
BAD: dict[str, str] = {
    "empty": "",
    "garbage": "garbage",
    "dots": "..",
    "more dots": "a.b.c.d.e",
    "not ascii": "é" * 20,
    "nul": "a\x00.b.c",
    "huge": token() + "A" * 10_000,
    "cut": token()[:-4],
    "no signature": token().rpartition(".")[0] + ".",
    "two signatures": token() + "." + token().rpartition(".")[2],
    "alg none": handmade({"alg": "none", "kid": "k1"}, b""),
    "alg none, shouted": handmade({"alg": "NONE", "kid": "k1"}, b""),
    "alg missing": handmade({"kid": "k1"}),
    "alg not a string": handmade({"alg": ["ES256"], "kid": "k1"}),
    "hmac over the public key": handmade({"alg": "HS256", "kid": "k1"}),
    "es256 in name, hmac in fact": handmade({"alg": "ES256", "kid": "k1"}),
    "the shared key": jwt.encode(claims(), "secret" * 8, "HS256", headers={"kid": "shared"}),
    "another algorithm of the same key": token(key=RSA_KEY, alg="RS512", kid="k2"),
    "pss instead of pkcs1": token(key=RSA_KEY, alg="PS256", kid="k2"),
    "a key of the wrong curve": token(key=OTHER_CURVE, alg="ES384", kid="p384"),
    "a key that does not sign": token(key=STRANGER, kid="for-encryption"),
    "a broken key": token(kid="broken"),
    "a stranger's signature": token(key=STRANGER),
    "the other key's id": token(kid="k2"),
    "an unknown id": token(kid="k9"),
    "no id": token(kid=None),
    "an id that is a path": token(kid="../../etc/passwd"),
    "an id that is a list": handmade({"alg": "ES256", "kid": ["k1"]}),
    "its own key": handmade({"alg": "ES256", "kid": "x", "jwk": jwk(STRANGER, "x")}),
    "its own key's address": handmade({"alg": "ES256", "kid": "x", "jku": "http://127.0.0.1:1/"}),
    "a critical extension": jwt.encode(
        claims(), KEY, "ES256", headers={"kid": "k1", "crit": ["exp-strict"], "exp-strict": True}
    ),
    "expired": token(claims(exp=NOW - 60)),
    "expired in words": token(claims(exp="tomorrow")),
    "without end": token(claims(exp=None)),
    "ends in the year 10^300": token(claims(exp=10**300)),
    "not yet valid": token(claims(nbf=NOW + 3600)),
    "from the future": token(claims(iat=NOW + 3600)),
    "another issuer": token(claims(iss="https://other.supabase.co/auth/v1")),
    "an issuer that begins like ours": token(claims(iss=ISSUER + ".evil.example")),
    "no issuer": token(claims(iss=None)),
    "another audience": token(claims(aud="anon")),
    "no audience": token(claims(aud=None)),
    "no user": token(claims(sub=None)),
    "a user that is no uuid": token(claims(sub="alice")),
    "an empty user": token(claims(sub="")),
    "a user in another form": token(claims(sub="{" + str(USER) + "}")),
    "no role": token(claims(role=None)),
    "the role of the service": token(claims(role="service_role")),
    "the role of nobody": token(claims(role="anon")),
    "made in the future, in words": token(claims(iat=str(NOW))),
    "without beginning": token(claims(iat=None)),
    "ends too late": token(claims(exp=NOW + 8 * 86400)),
    "began too early": token(claims(iat=NOW - 8 * 86400)),
    "ends as text": token(claims(exp=str(NOW + 600))),
    "ends never": token(claims(exp=float("inf"))),
    "ends at no number": token(claims(exp=float("nan"))),
    "begins at no number": token(claims(iat=float("nan"))),
    "padded": token() + "==",
    "with a line end": token() + "\n",
    "with a blank": token().replace(".", " .", 1),
    "with a character that decoders skip": token()[:-5] + "!" + token()[-5:],
    "a member twice": twice(),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_is_refused_and_learns_nothing(kind: str, authenticator: Authenticator) -> None:
    with pytest.raises(Unauthorized) as refused:
        await authenticator.authenticate(BAD[kind])
    expected = "The token has expired." if kind == "expired" else "The token is not valid."
    assert refused.value.detail == expected
    assert refused.value.__cause__ is None


async def test_a_token_of_a_week_is_taken(authenticator: Authenticator) -> None:
    now = int(time.time())
    await authenticator.authenticate(token(claims(iat=now, exp=now + auth.MAX_LIFE_SECONDS)))


async def test_who_signed_in_anonymously_is_told_that_it_takes_an_account(
    authenticator: Authenticator,
) -> None:
    for value in (True, "true", 1):
        with pytest.raises(Forbidden):
            await authenticator.authenticate(token(claims(is_anonymous=value)))


SHARED = "an old project's shared secret, of 40+ characters"


@pytest.fixture
def migrating(jwks_file: Path) -> Authenticator:
    return Authenticator(
        jwks_url=jwks_file.as_uri(), issuer=ISSUER, audience="authenticated", hs256_secret=Secret(SHARED)
    )


async def test_a_migrating_project_takes_both_kinds_of_token(migrating: Authenticator) -> None:
    for good in (token(), token(key=SHARED, alg="HS256"), token(key=SHARED, alg="HS256", kid=None)):
        assert (await migrating.authenticate(good)).user_id == USER


@pytest.mark.parametrize(
    "bad",
    [
        handmade({"alg": "HS256", "kid": "k1"}),
        handmade({"alg": "HS256"}),
        token(key="another secret of more than 32 characters", alg="HS256"),
        token(key=SHARED * 2, alg="HS512"),
        token(claims(role="service_role"), key=SHARED, alg="HS256"),
        handmade({"alg": "none"}, b""),
    ],
)
async def test_a_migrating_project_takes_nobodys_public_key_for_its_secret(
    bad: str, migrating: Authenticator
) -> None:
    with pytest.raises(Unauthorized):
        await migrating.authenticate(bad)


async def test_without_the_flag_no_shared_secret_counts(authenticator: Authenticator) -> None:
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(token(key=SHARED, alg="HS256"))


async def test_a_clock_that_is_seconds_behind_is_forgiven(authenticator: Authenticator) -> None:
    await authenticator.authenticate(token(claims(exp=int(time.time()) - 5)))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "bearer\tx", "x" * 100])
def test_a_header_without_a_bearer_token_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        bearer(header)


def test_the_scheme_is_read_in_any_case() -> None:
    assert bearer("bEaReR  abc ") == "abc"


async def test_a_token_is_not_verified_twice_and_ends_when_it_ends(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = token(claims(exp=int(time.time()) + 120))
    first = await authenticator.authenticate(good)
    assert await authenticator.authenticate(good) is first
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 129)
    assert await authenticator.authenticate(good) is first
    monkeypatch.setattr(time, "time", lambda: start + 131)
    assert await authenticator.authenticate(good) is not first  # looked at anew


async def test_the_memory_of_verified_tokens_is_bounded(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_CACHED_TOKENS", 3)
    tokens = [token(claims(n=n)) for n in range(5)]
    for each in tokens:
        await authenticator.authenticate(each)
    assert len(authenticator._verified) == 3  # pyright: ignore[reportPrivateUsage]


# --- keys over HTTP -----------------------------------------------------------------------------------


class Publisher:
    """Serves a JWKS and counts how often it is asked."""

    def __init__(self) -> None:
        self.document: object = JWKS
        self.status = 200
        self.asked = 0
        self.url = ""
        self.in_pieces = False
        self.hangs: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.in_pieces:
            reply = web.StreamResponse()
            await reply.prepare(request)
            for each in json.dumps(self.document):
                await reply.write(each.encode())
            return reply
        if self.hangs is not None:
            await self.hangs.wait()
        if self.status == 302:
            raise web.HTTPFound("/elsewhere")
        return web.json_response(self.document, status=self.status)


@pytest.fixture
async def publisher() -> AsyncGenerator[Publisher]:
    publisher = Publisher()
    app = web.Application()
    app.router.add_get("/jwks.json", publisher.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    publisher.url = f"http://{host}:{port}/jwks.json"
    yield publisher
    await runner.cleanup()


class Clock:
    """The monotonic clock as the authenticator sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.passed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_keys_are_fetched_once_and_again_after_ten_minutes(publisher: Publisher, clock: Clock) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.warm()
    for n in range(3):
        await authenticator.authenticate(token(claims(n=n)))
    assert publisher.asked == 1
    clock.passed = 601
    await authenticator.authenticate(token(claims(n=4)))
    assert publisher.asked == 2


async def test_a_new_key_works_at_once_and_made_up_key_ids_do_not_flood_the_publisher(
    publisher: Publisher, clock: Clock
) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.authenticate(token())
    publisher.document = {"keys": [jwk(STRANGER, "k9")]}
    clock.passed = 11
    await authenticator.authenticate(token(key=STRANGER, kid="k9"))
    asked = publisher.asked
    for n in range(20):
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(token(kid=f"made-up-{n}"))
    assert publisher.asked == asked


async def test_a_withdrawal_that_is_noticed_ends_the_memory_of_verified_tokens(
    publisher: Publisher, clock: Clock
) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.authenticate(token())
    publisher.document = {"keys": [jwk(STRANGER, "k9")]}
    clock.passed = 11
    await authenticator.authenticate(token(key=STRANGER, kid="k9"))
    assert len(authenticator._verified) == 1  # pyright: ignore[reportPrivateUsage]


async def test_keys_are_fetched_again_after_a_sleep_the_monotonic_clock_knows_nothing_of(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.authenticate(token())
    publisher.document = {"keys": []}
    monkeypatch.setattr(auth, "_REFETCH_SECONDS", 0)
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 601)
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(token(claims(exp=int(start) + 3600)))


async def test_a_withdrawn_key_stops_working_within_ten_minutes(publisher: Publisher, clock: Clock) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.authenticate(token())
    publisher.document = {"keys": []}
    clock.passed = 601
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(token(claims(n=1)))


@pytest.mark.parametrize("failure", ["status", "redirect", "document", "shape"])
async def test_old_keys_serve_on_while_new_ones_cannot_be_had(
    failure: str, publisher: Publisher, clock: Clock
) -> None:
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    await authenticator.authenticate(token())
    publisher.status = {"status": 500, "redirect": 302}.get(failure, 200)
    publisher.document = {"document": "x" * 10, "shape": {"keys": "none"}}.get(failure, JWKS)
    clock.passed = 601
    if failure == "shape":
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(token(claims(n=1)))
    else:
        await authenticator.authenticate(token(claims(n=1)))


async def test_keys_that_come_in_pieces_are_put_together(publisher: Publisher) -> None:
    publisher.in_pieces = True
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    assert (await authenticator.authenticate(token())).user_id == USER


async def test_who_waits_for_keys_that_do_not_come_waits_once(publisher: Publisher) -> None:
    publisher.status = 500
    publisher.hangs = asyncio.Event()
    authenticator = Authenticator(jwks_url=publisher.url, issuer=ISSUER, audience="authenticated")
    waiting = [asyncio.create_task(authenticator.authenticate(token(claims(n=n)))) for n in range(20)]
    await asyncio.sleep(0)  # all of them wait now
    publisher.hangs.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in results} == {Unavailable}
    assert publisher.asked <= 2


async def test_without_any_keys_nobody_is_refused_for_it(tmp_path: Path) -> None:
    for url in ((tmp_path / "none.json").as_uri(), "http://127.0.0.1:1/jwks.json"):
        authenticator = Authenticator(jwks_url=url, issuer=ISSUER, audience="authenticated")
        await authenticator.warm()
        with pytest.raises(Unavailable):
            await authenticator.authenticate(token())


# --- the last known keys ------------------------------------------------------------------------------


NOBODY = "http://127.0.0.1:1/jwks.json"
"""Where nobody listens: port 1 is never handed out."""


def remembering(database: Database, url: str, known_as: str) -> Authenticator:
    """Return one that asks `url` and remembers what it gets under `known_as`."""
    return Authenticator(
        jwks_url=url, issuer=ISSUER, audience="authenticated", last_known=StoredKeys(database, known_as)
    )


async def test_a_boot_while_the_issuer_is_away_uses_the_last_known_keys(
    publisher: Publisher, database: Database
) -> None:
    known_as = publisher.url
    await remembering(database, publisher.url, known_as).warm()
    booted = remembering(database, NOBODY, known_as)
    assert (await booted.authenticate(token())).user_id == USER
    with pytest.raises(Unauthorized):
        await booted.authenticate(token(key=STRANGER))
    with pytest.raises(Unavailable):
        await remembering(database, NOBODY, "another issuer's").authenticate(token())


async def test_the_issuer_is_asked_on_and_believed_once_it_is_back(
    publisher: Publisher, database: Database, clock: Clock
) -> None:
    await remembering(database, publisher.url, publisher.url).warm()
    publisher.status = 500
    booted = remembering(database, publisher.url, publisher.url)
    await booted.authenticate(token())
    publisher.status, publisher.document = 200, {"keys": [jwk(STRANGER, "k9")]}
    clock.passed = 11
    await booted.authenticate(token(key=STRANGER, kid="k9"))
    with pytest.raises(Unauthorized):
        await booted.authenticate(token(claims(n=1)))
    # What was withdrawn is not remembered either.
    later = remembering(database, NOBODY, publisher.url)
    await later.authenticate(token(key=STRANGER, kid="k9"))
    with pytest.raises(Unauthorized):
        await later.authenticate(token(claims(n=2)))


async def test_keys_older_than_a_week_are_not_used(
    publisher: Publisher, database: Database, database_url: str
) -> None:
    await remembering(database, publisher.url, publisher.url).warm()
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE myhealth.jwks_cache SET fetched_at = now() - interval '8 days'")
        with pytest.raises(Unavailable):
            await remembering(database, NOBODY, publisher.url).authenticate(token())
        # Fetched again, unchanged: its age counts from now.
        await remembering(database, publisher.url, publisher.url).warm()
        assert await connection.fetchval(
            "SELECT now() - fetched_at < interval '1 h' FROM myhealth.jwks_cache"
        )
    finally:
        await connection.close()
    await remembering(database, NOBODY, publisher.url).authenticate(token())


async def test_the_server_reaches_remembered_keys_through_its_functions_alone(database: Database) -> None:
    for statement in (
        "SELECT * FROM jwks_cache",
        "INSERT INTO jwks_cache (url, document) VALUES ('x', '')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.fetch(statement)


async def test_keys_that_cannot_be_remembered_cost_nobody_a_valid_token(
    publisher: Publisher, database: Database, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP FUNCTION myhealth.put_jwks, myhealth.read_jwks")
    await connection.close()
    await remembering(database, publisher.url, publisher.url).authenticate(token())
    with pytest.raises(Unavailable):
        await remembering(database, NOBODY, publisher.url).authenticate(token())
