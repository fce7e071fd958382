"""The issuer's keys over boots: a server that starts while the issuer is away checks tokens all the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from .conftest import AsUser
from .stack import Site


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
