"""Keys that rotate, are withdrawn and cannot be had, from an issuer over HTTP, with time as we say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator

import jwt
import pytest

from agent_backend.auth import Authenticator
from agent_backend.errors import Unauthorized, Unavailable

from .issuer import Issuer, issuer


@pytest.fixture(scope="module")
def _issuer() -> Generator[Issuer]:
    with issuer() as running:
        yield running


@pytest.fixture
async def supabase(_issuer: Issuer) -> Issuer:
    """Return an issuer with nothing wrong."""
    await _issuer.control("clock", token_seconds=3600)
    return _issuer


class Clock:
    """The monotonic clock as the authenticator sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.passed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def authenticator(supabase: Issuer) -> Authenticator:
    base = f"{supabase.url}/auth/v1"
    return Authenticator(jwks_url=f"{base}/.well-known/jwks.json", issuer=base, audience="authenticated")


_made = iter(range(1_000_000))


async def fresh(supabase: Issuer) -> str:
    """Return a new user's token."""
    return await supabase.token(f"u{next(_made)}")


async def test_a_rotation_that_was_announced_costs_no_request(
    supabase: Issuer, authenticator: Authenticator
) -> None:
    old = await fresh(supabase)
    await authenticator.authenticate(old)
    asked = await supabase.asked()
    await supabase.control("rotate")
    new = await fresh(supabase)
    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    await authenticator.authenticate(new)
    await authenticator.authenticate(old)
    assert await supabase.asked() == asked


async def test_a_rotation_may_change_the_algorithm(
    supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    for algorithm in ("RS256", "ES256"):
        await supabase.control("rotate", algorithm=algorithm, unannounced=True)
        token = await fresh(supabase)
        assert jwt.get_unverified_header(token)["alg"] == algorithm
        clock.passed += 11
        await authenticator.authenticate(token)


async def test_an_unannounced_key_is_asked_for_once_and_made_up_ones_do_not_flood_the_issuer(
    supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    await authenticator.authenticate(await fresh(supabase))
    await supabase.control("rotate", unannounced=True)
    token = await fresh(supabase)
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(token)  # within ten seconds of the last question
    clock.passed += 11
    asked = await supabase.asked()
    await asyncio.gather(*(authenticator.authenticate(token) for _ in range(20)))
    _, _, rest = token.partition(".")
    strangers = [
        jwt.encode({"sub": "x"}, "k" * 32, "HS256", headers={"kid": f"made-up-{n}"}) for n in range(50)
    ]
    results = await asyncio.gather(
        *(authenticator.authenticate(each) for each in [*strangers, f"e30.{rest}"]), return_exceptions=True
    )
    assert {type(each) for each in results} == {Unauthorized}
    assert await supabase.asked() == asked + 1


async def test_a_revoked_keys_tokens_stop_within_ten_minutes(
    supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    old = await fresh(supabase)
    await authenticator.authenticate(old)
    await supabase.control("rotate", revoke=True)
    clock.passed += 601
    await authenticator.authenticate(await fresh(supabase))
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(old)


@pytest.mark.parametrize("kind", ["reset", "status", "garbage", "huge"])
async def test_an_issuer_that_is_away_stops_nobody_whose_key_is_known(
    kind: str, supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    first, second = await fresh(supabase), await fresh(supabase)
    await authenticator.authenticate(first)
    await supabase.control("outage", kind=kind)
    clock.passed += 3600
    await authenticator.authenticate(first)
    await authenticator.authenticate(second)
    await supabase.ask("DELETE", "/_emulator/outage")


async def test_a_slow_issuer_holds_up_one_request_at_most(
    supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    tokens = [await fresh(supabase) for _ in range(4)]
    await authenticator.authenticate(tokens[0])
    await supabase.control("outage", kind="slow", seconds=60)
    clock.passed += 601
    held = asyncio.create_task(authenticator.authenticate(tokens[1]))
    # What is known is checked at once; the fetch itself is given up after five seconds.
    async with asyncio.timeout(4):
        while await supabase.asked() == 0 or not authenticator._keys._fetching.locked():
            await asyncio.sleep(0)
        await authenticator.authenticate(tokens[2])
        await authenticator.authenticate(tokens[3])
    assert not held.done()
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await supabase.ask("DELETE", "/_emulator/outage")


async def test_without_any_key_nobody_is_refused_for_it(
    supabase: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    token = await fresh(supabase)
    await supabase.control("outage", kind="status", status=500)
    with pytest.raises(Unavailable):
        await authenticator.authenticate(token)
    await supabase.ask("DELETE", "/_emulator/outage")
    clock.passed += 11
    await authenticator.authenticate(token)
