"""Made-up tokens against a running server: none gets in, none breaks it, and the good ones pass."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Generator
from typing import Any, NamedTuple

import aiohttp
import jwt
import pytest
from multidict import CIMultiDict
from yarl import URL

from .forge import Attempt, Forge
from .issuer import Issuer, issuer
from .stack import Backend, Site

SEED = 20261127
FLIPS = 1000
AT_ONCE = 16
PATH = "/v1/sessions?limit=1"
_REFUSALS = {400, 401, 403, 431}
"""Before a user is known: unreadable, no token, a token of nobody in particular, too long."""


class Attacked(NamedTuple):
    """A server, and a forge with its issuer's keys."""

    backend: Backend
    forge: Forge
    user: str


@pytest.fixture(scope="module")
def attacked(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Generator[Attacked]:
    state = tmp_path_factory.mktemp("issuer") / "state.json"
    with issuer(state=state) as supabase:
        token = asyncio.run(_prepared(supabase))
        kept = json.loads(state.read_bytes())["keys"]
        by_alg = {key["jwk"]["alg"]: key["jwk"] for key in kept}
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        forge = Forge(by_alg["ES256"], by_alg["RS256"], claims, SEED)
        with site.server("attacked", LEASE_SECONDS="20", **supabase.env) as backend:
            yield Attacked(backend, forge, claims["sub"])
            assert backend.errors() == []


async def _prepared(supabase: Issuer) -> str:
    """Publish keys of both kinds; return a user's token."""
    await supabase.ask("POST", "/_emulator/rotate", {"algorithm": "RS256"})
    return await supabase.token("alice")


async def status_of(http: aiohttp.ClientSession, url: str, token: str) -> int:
    """Return what a request with this token is answered."""
    async with http.get(URL(url, encoded=True), headers={"Authorization": f"Bearer {token}"}) as response:
        await response.read()
        return response.status


async def try_all(attempts: list[Attempt], backend: Backend) -> dict[str, int]:
    """Send every attempt; return each one's status."""
    todo, got = iter(enumerate(attempts)), dict[str, int]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as http:

        async def work() -> None:
            for n, each in todo:
                got[f"{n} {each.what}"] = await status_of(http, backend.url + PATH, each.token)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return got


async def test_no_made_up_token_gets_in_and_none_breaks_the_server(
    attacked: Attacked, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = [*attacked.forge.bad(), *attacked.forge.flips(FLIPS)]
    got = await try_all(attempts, attacked.backend)
    good = await try_all(list(attacked.forge.good()), attacked.backend)
    with capsys.disabled():
        counts = dict(sorted(Counter(got.values()).items()))
        print(f"\n  {len(got)} made-up tokens: {counts}; {len(good)} good ones")
    assert len(got) == len(attempts)
    assert {what: status for what, status in got.items() if status not in _REFUSALS} == {}
    assert {what: status for what, status in good.items() if status != 200} == {}


async def test_a_token_counts_in_its_place_only(attacked: Attacked) -> None:
    good = attacked.forge.token()
    other = attacked.forge.token(claims=attacked.forge.claims(sub="0199ab12-0000-7000-8000-000000000009"))
    bad = good[:-8] + "AAAAAAAA"
    url = attacked.backend.url + PATH

    def auth(*values: str) -> CIMultiDict[str]:
        return CIMultiDict([("Authorization", value) for value in values])

    refused: list[tuple[str, CIMultiDict[str]]] = [
        *((url, auth(f"Bearer {a}", f"Bearer {b}")) for a in (good, bad) for b in (good, bad, other)),
        *((f"{url}&{name}={good}", auth()) for name in ("access_token", "token", "apikey", "jwt")),
        *(
            (url, CIMultiDict([(name, good)]))
            for name in ("apikey", "X-Authorization", "Proxy-Authorization")
        ),
        *((url, CIMultiDict([("Cookie", f"{name}={good}")])) for name in ("sb-access-token", "access_token")),
        *((url, auth(f"{scheme}{good}")) for scheme in ("", "Basic ", "Token ", "JWT ", "Bearer", "Bearer:")),
        *(
            (url, auth(text))
            for text in (f"Bearer {good}, Bearer {good}", f"Bearer {good} {good}", "Bearer ")
        ),
        *(
            (
                url,
                auth(f"Bearer\u00a0{good}"),
            )
            for _ in range(1)
        ),
    ]
    async with aiohttp.ClientSession() as http:
        for where, headers in refused:
            async with http.get(URL(where, encoded=True), headers=headers) as response:
                assert response.status in _REFUSALS, (where[-40:], [value[:12] for value in headers.values()])
        for value in (f"Bearer {good}", f"bearer {good}", f"BEARER   {good}"):
            async with http.get(url, headers=auth(value)) as response:
                assert response.status == 200


async def test_a_sockets_token_is_one_and_a_good_one(attacked: Attacked) -> None:
    good, forge = attacked.forge.token(), attacked.forge
    other = forge.token(claims=forge.claims(sub="0199ab12-0000-7000-8000-000000000009"))
    bad = good[:-8] + "AAAAAAAA"
    url = attacked.backend.url + "/v1/stream"

    async def opened(*protocols: str, query: str = "", **headers: str) -> int:
        try:
            async with http.ws_connect(url + query, protocols=protocols, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    async with aiohttp.ClientSession() as http:
        for protocols in (
            (),
            ("bearer.",),
            (f"bearer.{bad}",),
            (f"Bearer.{good}",),
            (f"bearer {good}",),
            (good,),
            (f"token.{good}",),
            (f"bearer.{good}", f"bearer.{other}"),
            (f"bearer.{good}", f"bearer.{bad}"),
            (f"bearer.bearer.{good}",),
        ):
            assert await opened(*protocols) in _REFUSALS, [each[:10] for each in protocols]
        assert await opened(f"bearer.{good}", Authorization=f"Bearer {other}") in _REFUSALS
        assert await opened(f"bearer.{good}", Authorization="Basic YTpi") in _REFUSALS
        assert await opened(query=f"?access_token={good}") in _REFUSALS
        assert await opened("v1", f"bearer.{good}") == 101
        assert await opened(f"bearer.{good}", Authorization=f"Bearer {good}") == 101
        assert await opened(Authorization=f"Bearer {good}") == 101
