"""What one user and one address may do, over real sockets and a clock that the test moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import aiohttp
import pytest
from starlette.responses import Response

from agent_backend import app
from agent_backend.devtoken import issue
from agent_backend.events import Cursor
from agent_backend.settings import Settings
from agent_backend.telemetry import metrics
from agent_backend.web import limits, services, websocket
from agent_backend.web.buckets import Rate
from agent_backend.web.limits import Limits
from agent_backend.web.operations import Call, EventStream, operation, reply
from agent_backend.web.sse import EventStreamResponse
from agent_backend.web.stream import Placed
from agent_backend.web.websocket import SOCKETS

from .serving import app_of, headers_for, serving, settings_for

PATIENCE = 10


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@operation("GET", "/read", replies={200: str})
async def read(_call: Call[None, None]) -> Response:
    return reply("ok")


@operation("POST", "/export", limit="exports", cost=2, replies={200: str})
async def export(_call: Call[None, None]) -> Response:
    return reply("ok")


@operation("GET", "/open", auth=False, replies={200: str})
async def open_to_all(_call: Call[None, None]) -> Response:
    return reply("ok")


@operation("GET", "/awake", auth=False, replies={200: bool})
async def awake(call: Call[None, None]) -> Response:
    return reply(call.services.used)


async def _endless() -> AsyncGenerator[list[Placed]]:
    yield [Placed(Cursor(1, 1), b'{"type":"CUSTOM"}')]
    await asyncio.Event().wait()


@operation("GET", "/follow", stream=EventStream("Without an end.", str))
async def follow(call: Call[None, None]) -> Response:
    return EventStreamResponse(_endless(), "thread", until=call.principal.streams_until)


OPERATIONS = (read, export, open_to_all, awake, follow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(services, "Limits", partial(Limits, clock=made))
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, LIMIT_FACTOR="1")


@pytest.fixture
async def http(settings: Settings, clock: Clock) -> AsyncGenerator[aiohttp.ClientSession]:
    app = app_of(settings, OPERATIONS, SOCKETS)
    async with serving(app, settings) as url, aiohttp.ClientSession(url) as session:
        yield session


async def status(http: aiohttp.ClientSession, path: str, headers: dict[str, str], method: str = "GET") -> int:
    async with http.request(method, path, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_user_who_asks_too_often_is_told_which_limit_and_when_to_come_again(
    http: aiohttp.ClientSession, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "reads", Rate(burst=3, interval=2.5))
    alice, bob = headers_for(settings, "alice"), headers_for(settings, "bob")
    assert [await status(http, "/read", alice) for _ in range(4)] == [200, 200, 200, 429]
    async with http.get("/read", headers=alice) as response:
        problem: dict[str, Any] = await response.json(content_type="application/problem+json")
        assert response.headers["Retry-After"] == "3"
        assert response.headers["RateLimit-Policy"] == '"reads";q=3;w=8'
        assert response.headers["RateLimit"] == '"reads";r=0;t=3'
    assert (problem["code"], problem["limit"], problem["retry_after"]) == ("too_many_requests", "reads", 3)
    assert await status(http, "/read", bob) == 200
    assert await status(http, "/export", alice, "POST") == 200  # another class
    clock.now += 3
    assert [await status(http, "/read", alice) for _ in range(2)] == [200, 429]


async def test_an_operation_has_its_own_cost(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "exports", Rate(burst=5, interval=600))
    alice = headers_for(settings, "alice")
    assert [await status(http, "/export", alice, "POST") for _ in range(3)] == [200, 200, 429]


async def test_what_needs_no_token_has_no_limit(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in limits.RATES:
        monkeypatch.setitem(limits.RATES, name, Rate(burst=1, interval=1000))
    assert {await status(http, "/open", {}) for _ in range(20)} == {200}


async def test_tokens_that_are_made_up_are_counted_and_then_not_even_looked_at(
    http: aiohttp.ClientSession, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "auth_failures", Rate(burst=3, interval=60))
    alice, bob = headers_for(settings, "alice"), headers_for(settings, "bob")
    made_up = {"Authorization": alice["Authorization"][:-8] + "AAAAAAAA"}
    assert await status(http, "/read", alice) == 200
    assert [await status(http, "/read", made_up) for _ in range(5)] == [401, 401, 401, 429, 429]
    # Who is known goes on; who comes new to this address waits for it.
    assert [await status(http, "/read", each) for each in (alice, bob)] == [200, 429]
    clock.now += 60
    assert await status(http, "/read", bob) == 200


async def test_a_token_that_has_expired_is_no_guess(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "auth_failures", Rate(burst=1, interval=1000))
    old = {"Authorization": f"Bearer {issue(settings, 'alice', -60)}"}
    assert [await status(http, "/read", old) for _ in range(4)] == [401] * 4


async def test_an_address_may_bring_so_many_unknown_tokens(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "strangers", Rate(burst=2, interval=1000))
    users = [headers_for(settings, f"user{n}") for n in range(3)]
    assert [await status(http, "/read", each) for each in users] == [200, 200, 429]
    assert await status(http, "/read", users[0]) == 200  # known by now


async def test_what_is_refused_keeps_nobody_awake(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "exports", Rate(burst=1, interval=1000))
    alice = headers_for(settings, "alice")
    monkeypatch.setattr(Limits, "take", _refusing(Limits.take))
    assert await status(http, "/export", alice, "POST") == 429
    async with http.get("/awake") as response:
        assert await response.json() is False


def _refusing(take: Callable[..., None]) -> Callable[..., None]:
    def twice(self: Limits, *arguments: Any) -> None:
        take(self, *arguments)
        take(self, *arguments)

    return twice


async def test_in_development_nothing_is_counted(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in limits.RATES:
        monkeypatch.setitem(limits.RATES, name, Rate(burst=1, interval=1000))
    settings = settings_for(tmp_path)
    alice = headers_for(settings, "alice")
    async with (
        serving(app_of(settings, OPERATIONS), settings) as url,
        aiohttp.ClientSession(url) as http,
    ):
        assert {await status(http, "/read", alice) for _ in range(20)} == {200}


# --- addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "peer", "header", "address"),
    [
        ("on", "172.16.3.2", b"203.0.113.9", "203.0.113.9"),
        ("on", "fdaa:0:1::3", b"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("on", "::ffff:172.16.3.2", b"::ffff:203.0.113.9", "203.0.113.9"),
        ("on", "8.8.4.4", b"203.0.113.9", "8.8.4.4"),  # not the proxy
        ("off", "172.16.3.2", b"203.0.113.9", "172.16.3.2"),
        ("on", "172.16.3.2", b"203.0.113.9, 1.1.1.1", "172.16.3.2"),
        ("on", "172.16.3.2", b"x" * 5000, "172.16.3.2"),
        ("on", "172.16.3.2", None, "172.16.3.2"),
        ("off", "2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::"),
    ],
)
def test_the_address_is_the_peers_or_whom_flys_proxy_names(
    tmp_path: Path, trusted: str, peer: str, header: bytes | None, address: str
) -> None:
    counted = Limits(settings_for(tmp_path, TRUST_FLY_CLIENT_IP=trusted))
    headers = [(b"host", b"x")] + ([(b"fly-client-ip", header)] if header is not None else [])
    assert counted.address({"type": "http", "client": (peer, 1), "headers": headers}) == address


def test_the_header_is_believed_where_fly_is(tmp_path: Path) -> None:
    assert settings_for(tmp_path).trust_fly_client_ip is False
    assert settings_for(tmp_path, FLY_APP_NAME="coach").trust_fly_client_ip is True
    assert (
        settings_for(tmp_path, FLY_APP_NAME="coach", TRUST_FLY_CLIENT_IP="off").trust_fly_client_ip is False
    )


# --- streams -------------------------------------------------------------------------------------------


@asynccontextmanager
async def following(
    http: aiohttp.ClientSession, headers: dict[str, str]
) -> AsyncGenerator[aiohttp.ClientResponse]:
    async with http.get("/follow", headers=headers) as response:
        assert response.status == 200
        assert (await response.content.readuntil(b"\n\n")).startswith(b"id: 1-1")
        yield response


async def test_the_newest_stream_wins_and_the_oldest_is_asked_to_come_back(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAMS_PER_USER", 2)
    alice, before = headers_for(settings, "alice"), metrics.streams_open
    async with (
        asyncio.timeout(PATIENCE),
        following(http, headers_for(settings, "bob")) as his,
        following(http, alice) as first,
        http.ws_connect("/v1/stream", headers=alice) as second,
        following(http, alice) as third,
    ):
        assert await first.content.read() == b"retry: 1000\n\n"
        assert not second.closed
        async with following(http, alice) as fourth:
            assert (await second.receive()).data == 1001
            assert not third.content.at_eof()
            assert not fourth.content.at_eof()
        assert not his.content.at_eof()
    async with asyncio.timeout(PATIENCE):
        while metrics.streams_open > before:
            await asyncio.sleep(0.01)


async def test_a_stream_that_ended_leaves_room(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAMS_PER_ADDRESS", 1)
    alice = headers_for(settings, "alice")
    async with asyncio.timeout(PATIENCE):
        async with following(http, alice):
            assert await status(http, "/follow", alice) == 429
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect("/v1/stream", headers=alice)
            assert refused.value.status == 429
        while await status_of_head(http, "/follow", alice) == 429:
            await asyncio.sleep(0.01)


async def test_a_user_has_only_so_many_requests_at_once(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUESTS_PER_USER", 2)
    alice, bob = headers_for(settings, "alice"), headers_for(settings, "bob")
    async with asyncio.timeout(PATIENCE):
        async with following(http, alice), following(http, alice):
            assert [await status(http, "/read", each) for each in (alice, bob)] == [429, 200]
        while await status(http, "/read", alice) == 429:
            await asyncio.sleep(0.01)


async def status_of_head(http: aiohttp.ClientSession, path: str, headers: dict[str, str]) -> int:
    async with http.get(path, headers=headers) as response:
        return response.status


async def test_subscribing_reads_and_is_counted_so(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.RATES, "reads", Rate(burst=1, interval=100))
    async with (
        asyncio.timeout(PATIENCE),
        http.ws_connect("/v1/stream", headers=headers_for(settings)) as socket,
    ):
        for _ in range(12):  # more than the malformed frames that a socket may send
            await socket.send_json({"type": "subscribe", "session": str(uuid4())})
            answer = await socket.receive_json()
            assert (answer["code"], answer["retry_after"]) == ("too_many_requests", 100)
        await socket.send_json({"type": "ping"})
        assert await socket.receive_json() == {"type": "pong"}


async def test_frames_beyond_the_burst_are_read_one_after_the_other(
    http: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "FRAMES_BURST", 2)
    monkeypatch.setattr(websocket, "FRAME_SECONDS", 0.03)
    async with (
        asyncio.timeout(PATIENCE),
        http.ws_connect("/v1/stream", headers=headers_for(settings)) as socket,
    ):
        began = time.monotonic()
        for _ in range(6):
            await socket.send_json({"type": "ping"})
        for _ in range(6):
            await socket.receive_json()
    assert time.monotonic() - began >= 4 * 0.03 - 0.01


def test_the_factor_counts_for_turns_as_well(tmp_path: Path) -> None:
    assert limits.turns_per_user(settings_for(tmp_path)) is None
    assert limits.turns_per_user(settings_for(tmp_path, LIMIT_FACTOR="0.5")) == limits.TURNS_PER_USER // 2


def test_operations_count_as_what_the_page_says() -> None:
    """A class that no operation names limits nothing."""
    named = {operation.name: operation.limit for operation in app.OPERATIONS}
    assert set(named.values()) == set(get_args(limits.Limit))
    assert named["export_me"] == "exports"
