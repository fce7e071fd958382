"""`fly-replay`: its grammar, and requests that are sent on by the machine they came to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from fly_emulator.edge.replay import Replay, parse_replay

from .edge_client import RawClient, an_edge
from .local_fleet import LocalFleet, LocalMachine, whoami


@pytest.fixture
def fleet() -> LocalFleet:
    return LocalFleet()


def replaying(value: str) -> Callable[[LocalMachine], web.Application]:
    """Answer with `fly-replay`, but a request that came back after it failed normally."""

    def make(machine: LocalMachine) -> web.Application:
        async def answer(request: web.Request) -> web.Response:
            await request.read()
            if "fly-replay-failed" in request.headers:
                headers = {name.lower(): text for name, text in request.headers.items()}
                return web.json_response({"machine": machine.id, "headers": headers})
            return web.Response(headers={"fly-replay": value})

        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{tail:.*}", answer)
        return app

    return make


@pytest.mark.parametrize(
    ("value", "replay"),
    [
        ("instance=00bb33ff", Replay(instance="00bb33ff")),
        ("region=sjc", Replay(regions=("sjc",))),
        ('region="iad, ord,us"; state=a', Replay(regions=("iad", "ord", "us"), state="a")),
        ("app=x;timeout=800ms;fallback=force_self", Replay(app="x", timeout=0.8, fallback="force_self")),
        ("elsewhere=true;", Replay(elsewhere=True)),
        ("prefer_instance=1;region=any", Replay(prefer_instance="1", regions=("any",))),
    ],
)
def test_a_replay_is_read(value: str, replay: Replay) -> None:
    assert parse_replay(value) == replay


@pytest.mark.parametrize(
    "value",
    ["", "state=x", "instance", "machine=1", "region=a;region=b", "app=x;fallback=me", "app=x;timeout=5",
     "elsewhere=maybe", "region=iad,ord;=", 'region="iad'],
)  # fmt: skip
def test_what_is_no_replay_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_replay(value)


async def test_a_replay_goes_to_the_instance_and_wakes_it(fleet: LocalFleet, tmp_path: Path) -> None:
    target = fleet.add(whoami)
    source = fleet.add(replaying(f"instance={target.id};state=s1"))
    await source.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.send(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nFly-Replay-Src: forged\r\n\r\nbody")
        status, headers, body = await client.answer()
        answer = json.loads(body)
        assert (status, answer["machine"], answer["path"], answer["length"]) == (200, target.id, "/p", 4)
        assert re.fullmatch(
            rf"instance={source.id};region=fra;t=\d{{16}};state=s1", answer["headers"]["fly-replay-src"]
        )
        assert "fly-replay" not in headers
        assert target.starts == 1


async def test_elsewhere_and_region(fleet: LocalFleet, tmp_path: Path) -> None:
    far = fleet.add(whoami, region="iad")
    other = fleet.add(whoami)
    source = fleet.add(replaying("elsewhere=true"))
    for machine in (far, source):
        await machine.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", f"fly-prefer-instance-id: {source.id}")
        assert json.loads((await client.answer())[2])["machine"] == far.id  # it runs; the other sleeps
        client.get("/", "fly-force-region: iad")
        assert json.loads((await client.answer())[2])["machine"] == far.id
        assert other.starts == 0


async def test_more_than_a_megabyte_is_not_replayed(fleet: LocalFleet, tmp_path: Path) -> None:
    source = fleet.add(replaying("elsewhere=true"))
    fleet.add(whoami)
    await source.start()
    async with an_edge(fleet, tmp_path) as edge:
        for size, status in ((1024 * 1024, 200), (1024 * 1024 + 1, 413)):
            client = await RawClient.connect(edge)
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % size)
            client.send(b"fly-prefer-instance-id: %s\r\n\r\n" % source.id.encode() + b"z" * size)
            assert (await client.answer())[0] == status
        assert edge.logged("[PA01]")


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("region=fra", 502, "PA02"),
        ("nonsense", 502, "PA03"),
        ("app=another", 502, "PA04"),
        ("instance=00bb33ff", 404, "PR02"),
        ("region=syd", 503, "PR04"),
    ],
)
async def test_replays_that_fail(
    fleet: LocalFleet, tmp_path: Path, value: str, status: int, code: str
) -> None:
    await fleet.add(replaying(value)).start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        answer = await client.answer()
        assert (answer[0], answer[1]["fly-emulator-error"]) == (status, code)
        assert edge.logged(f"[{code}]")


@pytest.mark.parametrize("fallback", ["force_self", "prefer_self"])
async def test_a_fallback_comes_back_with_the_reason(
    fleet: LocalFleet, tmp_path: Path, fallback: str
) -> None:
    value = f"instance=00bb33ff;timeout=1s;fallback={fallback}"
    source = fleet.add(replaying(value))
    await source.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get()
        status, _, body = await client.answer()
        answer = json.loads(body)
        assert (status, answer["machine"]) == (200, source.id)
        assert re.fullmatch(
            rf"instance=00bb33ff;app=testapp;replay_source={source.id};reason=no_candidate;elapsed_ms=\d+",
            answer["headers"]["fly-replay-failed"],
        )


async def test_a_replay_with_a_timeout_gives_up_waiting(fleet: LocalFleet, tmp_path: Path) -> None:
    target = fleet.add(whoami)
    target.gate.clear()
    value = f"instance={target.id};timeout=50ms;fallback=force_self"
    source = fleet.add(replaying(value))
    await source.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", f"fly-prefer-instance-id: {source.id}")
        answer = json.loads((await client.answer())[2])
        assert "reason=timeout" in answer["headers"]["fly-replay-failed"]


async def test_forced_and_preferred_instances(fleet: LocalFleet, tmp_path: Path) -> None:
    first, second = fleet.add(whoami), fleet.add(whoami)
    await first.start()
    async with an_edge(fleet, tmp_path) as edge:
        client = await RawClient.connect(edge)
        client.get("/", f"fly-prefer-instance-id: {second.id}")
        answer = json.loads((await client.answer())[2])
        assert answer["machine"] == first.id
        assert answer["headers"]["fly-preferred-instance-unavailable"] == second.id
        client.get("/", f"fly-force-instance-id: {second.id}")
        assert json.loads((await client.answer())[2])["machine"] == second.id
        client.get("/", f"fly-prefer-instance-id: {second.id}")
        assert json.loads((await client.answer())[2])["machine"] == second.id
        client.get("/", "fly-force-instance-id: 123")
        status, headers, _ = await client.answer()
        assert (status, headers["fly-emulator-error"]) == (404, "PR02")
