"""The issuer's keys over boots: a server that starts while the issuer is away checks tokens all the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from .client import Client
from .conftest import AsUser
from .issuer import issuer as supabase
from .stack import Backend, Site


@asynccontextmanager
async def issuer(document: str) -> AsyncGenerator[str]:
    """Serve a JWKS; yields its URL."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=document, content_type="application/json")

    app = web.Application()
    app.router.add_get("/jwks.json", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/jwks.json"
    finally:
        await runner.cleanup()


async def test_a_server_that_boots_while_the_issuer_is_away_knows_its_users(
    site: Site, as_user: AsUser
) -> None:
    async with issuer(site.jwks()) as url:
        with site.server(JWKS_URL=url) as a:
            assert (await as_user(a).call("GET", "/v1/sessions"))[0] == 200
    with site.server(JWKS_URL=url) as b:
        client = as_user(b)
        assert (await client.call("GET", "/v1/sessions"))[0] == 200
        status, _ = await client.call("GET", "/v1/sessions", headers={"Authorization": "Bearer a.b.c"})
        assert status == 401
    with site.server(JWKS_URL=url.replace("jwks.json", "unknown.json")) as c:
        assert (await as_user(c).call("GET", "/v1/sessions"))[0] == 503


async def test_a_running_server_follows_its_issuers_keys_and_a_restart_forgets_revoked_ones(
    site: Site,
) -> None:
    with supabase() as auth:
        with site.server(**auth.env) as a:
            old = await auth.token("alice")
            assert await let_in(a, old)
            await auth.ask("POST", "/_emulator/rotate", {})
            new = [await auth.token("alice") for _ in range(2)]
            assert await let_in(a, new[0])
            await auth.ask("POST", "/_emulator/outage", {"kind": "reset"})
            assert await let_in(a, new[1])
            assert await let_in(a, old)
            await auth.ask("DELETE", "/_emulator/outage")
        await auth.ask("POST", "/_emulator/rotate", {"revoke": True})
        with site.server(**auth.env) as b:
            assert not await let_in(b, old)
            assert not await let_in(b, new[0])
            assert await let_in(b, await auth.token("alice"))


async def let_in(backend: Backend, token: str) -> bool:
    """Say whether a token opens the server."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
        status, _ = await Client(http, backend.url).call("GET", "/v1/sessions")
    assert status in (200, 401)
    return status == 200
