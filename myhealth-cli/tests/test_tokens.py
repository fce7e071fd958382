"""A made-up user's session with a local stack's issuer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from myhealth_cli.client import Client
from myhealth_cli.ids import uuid7
from myhealth_cli.tokens import DevelopmentToken, GivenToken, Issuer, SignedIn, TokenError, tokens_for


@pytest.fixture
def issuer() -> Generator[Issuer]:
    command = [sys.executable, "-m", "supabase_emulator", "serve", "--port", "0", "--token-seconds", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield Issuer(said["url"], said["publishable_key"])
        process.terminate()
        process.wait(timeout=10)


async def seen(issuer: Issuer) -> list[tuple[str, int]]:
    """Return what the issuer was asked, and how it answered."""
    async with aiohttp.ClientSession() as http, http.get(f"{issuer.url}/_emulator/requests") as response:
        asked = (await response.json())["requests"]
    return [(each["path"].rpartition("/")[2], each["status"]) for each in asked]


async def test_a_token_is_exchanged_before_it_ends_and_not_sooner(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = SignedIn(issuer, "demo")
    first = await tokens.token()
    assert await seen(issuer) == [("token", 400), ("signup", 200)]
    assert {await tokens.token() for _ in range(5)} == {first}
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 76)
    second = await tokens.token()
    assert second != first
    assert (await seen(issuer))[2:] == [("token", 200)]
    # Many that ask at once share one exchange.
    monkeypatch.setattr(time, "time", lambda: start + 152)
    assert len({*await asyncio.gather(*(tokens.token() for _ in range(10)))}) == 1
    assert len(await seen(issuer)) == 4
    # Another command is the same person.
    assert await SignedIn(issuer, "demo@example.com").token()
    assert (await seen(issuer))[-1] == ("token", 200)


async def test_an_issuer_that_is_away_stops_nobody_before_the_token_ends(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = SignedIn(issuer, "demo")
    first = await tokens.token()
    async with aiohttp.ClientSession() as http:
        outage = {"kind": "reset", "everything": True}
        async with http.post(f"{issuer.url}/_emulator/outage", json=outage) as response:
            assert response.status == 201
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 90)
    assert await tokens.token() == first
    monkeypatch.setattr(time, "time", lambda: start + 101)
    with pytest.raises(TokenError, match="does not answer"):
        await tokens.token()


def test_a_local_stacks_servers_get_its_issuers_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYHEALTH_DATA", str(tmp_path))
    (tmp_path / "3001").mkdir()
    Issuer.file(tmp_path / "3001").write_bytes(msgspec.json.encode(Issuer("http://127.0.0.1:1", "key")))
    assert isinstance(tokens_for("http://localhost:3001", None, "demo"), SignedIn)
    assert isinstance(tokens_for("http://localhost:3001", "given", "demo"), GivenToken)
    for elsewhere in ("http://localhost:3002", "https://api.example.com:3001", "http://localhost"):
        assert isinstance(tokens_for(elsewhere, None, "demo"), DevelopmentToken)


async def test_a_stream_that_ends_on_purpose_is_taken_up_without_a_word() -> None:
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        started = 'id: 1-1\ndata: {"type":"RUN_STARTED","threadId":"t","runId":"r"}\n\nretry: 10\n\n'
        finished = 'id: 1-2\ndata: {"type":"RUN_FINISHED","threadId":"t","runId":"r"}\n\n'
        return web.Response(text=started if len(asked) == 1 else finished, content_type="text/event-stream")

    app = web.Application()
    app.router.add_put("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with Client(url, GivenToken("given")) as client:
        items = [item async for item in client.send(uuid7(), uuid7(), "Hello")]
    await runner.cleanup()
    assert [type(each).__name__ for each in items] == ["RunStarted", "RunFinished"]
    assert asked == [None, "1-1"]
