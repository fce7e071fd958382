"""Tokens for Fly, with a flyctl that says what a test tells it to; test_flyctl_*.py have one that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from myhealth_cli.deploy import state
from myhealth_cli.deploy.errors import FlyctlError
from myhealth_cli.deploy.flyctl import Flyctl
from myhealth_cli.deploy.machines_api import MachinesApi, authorization, token

Says = Callable[..., Flyctl]


@pytest.fixture
def says(tmp_path: Path) -> Says:
    """Return a flyctl that prints `out`, complains of `error`, and ends accordingly."""

    def make(out: str = "", error: str = "") -> Flyctl:
        (tmp_path / "out").write_text(out + "\n", "utf-8")
        (tmp_path / "error").write_text(error, "utf-8")
        program = tmp_path / "flyctl"
        program.write_text("#!/bin/sh\ncat out\ncat error >&2\ntest ! -s error\n", "utf-8")
        program.chmod(0o755)
        return Flyctl(program, tmp_path)

    return make


@pytest.mark.parametrize(
    ("given", "everywhere", "machines"),
    [
        ("fo1_a", "Bearer fo1_a", "Bearer fo1_a"),
        ("a,b", "Bearer a,b", "Bearer a,b"),
        ("fm2_a,fm2_b", "FlyV1 fm2_a,fm2_b", "FlyV1 fm2_a,fm2_b"),
        ("fo1_a, fm2_b,fm1a_c", "FlyV1 fm2_b,fm1a_c,fo1_a", "FlyV1 fm2_b,fm1a_c"),
    ],
)
def test_a_header_is_written_as_flyctl_writes_it(given: str, everywhere: str, machines: str) -> None:
    assert authorization(given) == everywhere
    assert authorization(given, macaroons_only=True) == machines


@pytest.mark.parametrize(
    ("out", "error", "wrong"),
    [
        ("", "", "has expired, or is not whole"),
        ("fm2_a,FlyV1 fm2_b", "", "a scheme .FlyV1. in its middle"),
        ("", "Error: no access token available. Please login", "not logged in to Fly"),
        ("", "Error: dial tcp: refused", "dial tcp: refused"),
    ],
)
async def test_a_token_that_cannot_be_used_is_told(says: Says, out: str, error: str, wrong: str) -> None:
    with pytest.raises(FlyctlError, match=wrong):
        await token(says(out, error))


async def test_the_machines_api_is_asked_with_the_token_of_the_moment(says: Says) -> None:
    given: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        given.append(request.headers.get("Authorization"))
        return web.json_response({})

    app = web.Application()
    app.add_routes([web.get("/v1/apps/shop/machines/m/metadata", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with MachinesApi(says("fm2_first"), url, fresh_s=0) as api:
            await api.metadata("shop", "m")
            says("fm2_renewed,fo1_user")
            await api.metadata("shop", "m")
    finally:
        await runner.cleanup()
    assert given == ["FlyV1 fm2_first", "FlyV1 fm2_renewed"]


async def test_an_app_is_asked_for_by_name_and_may_be_missing(says: Says) -> None:
    gone = await state.read(says(error='Error: failed to list releases: Could not find App "shop"'), "shop")
    assert not gone.exists
    with pytest.raises(FlyctlError, match="unauthorized"):
        await state.read(says(error="Error: unauthorized"), "shop")
