"""`/_emulator/*` and the command line."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import aiohttp
import pytest

from anthropic_emulator.settings import Settings

from .client import HEADERS, Emulator, ask


async def test_requests_shows_what_was_sent_without_the_key(emulator: Emulator) -> None:
    body = ask("Hello there")
    answer = await emulator.post(body, authorization="Bearer also-secret", x_trace="t1")
    shown = await emulator.control("GET", "requests")
    record = shown.json["requests"][-1]
    assert record["body"] == body
    assert record["id"] == answer.headers["request-id"]
    assert record["headers"]["x-trace"] == "t1"
    assert record["headers"]["anthropic-version"] == "2026-10-21"
    assert (record["status"], record["outcome"], record["stop_reason"]) == (200, "complete", "end_turn")
    assert record["usage"] == answer.json["usage"]
    assert b"test-key" not in shown.body
    assert b"also-secret" not in shown.body


async def test_requests_shows_refused_ones_too(emulator: Emulator) -> None:
    await emulator.post(b"\xff")
    await emulator.post(ask("Hi"), x_emulator_fault="529")
    refused, failed = (await emulator.control("GET", "requests?limit=2")).json["requests"]
    assert (refused["status"], refused["outcome"]) == (400, "error")
    assert (failed["status"], failed["outcome"], failed["fault"]) == (529, "fault", "529")
    assert (await emulator.control("GET", "requests?limit=x")).status == 400


class TestSmallMemory:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(ttft_ms=0, delay_ms=0, keep_requests=3)

    async def test_only_the_last_requests_are_kept(self, emulator: Emulator) -> None:
        for n in range(5):
            await emulator.say(f"Hello {n}")
        kept = (await emulator.control("GET", "requests")).json["requests"]
        assert [record["body"]["messages"][0]["content"] for record in kept] == [
            "Hello 2",
            "Hello 3",
            "Hello 4",
        ]


async def test_reset_forgets_everything(emulator: Emulator) -> None:
    await emulator.say("Hello")
    await emulator.advance(1000)
    assert (await emulator.control("POST", "reset")).status == 204
    assert (await emulator.control("GET", "requests")).json == {"requests": []}
    stats = (await emulator.control("GET", "stats")).json
    assert (stats["requests"], stats["models"], stats["cost_usd_micro"]) == (0, {}, 0)
    assert (await emulator.control("POST", "clock", {})).json["offset_s"] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [("clock", {"advance_s": -1}), ("clock", {"colour": 1}), ("faults", {}), ("faults", {"fault": 1})],
)
async def test_control_refuses_what_it_does_not_know(emulator: Emulator, path: str, body: object) -> None:
    assert (await emulator.control("POST", path, body)).status == 400


async def test_healthz_needs_no_key(emulator: Emulator) -> None:
    answer = await emulator.control("GET", "healthz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


class TestOneKey:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(ttft_ms=0, delay_ms=0, api_key="right")

    async def test_other_keys_are_refused(self, emulator: Emulator) -> None:
        wrong = await emulator.post(ask("Hi"))
        assert (wrong.status, wrong.json["error"]["message"]) == (401, "invalid x-api-key")
        assert (await emulator.post(ask("Hi"), x_api_key="right")).status == 200


def test_serve_prints_its_address_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        line = json.loads(server.stdout.readline())
        assert line["action"] == "listening"
        with urllib.request.urlopen(line["url"] + "/_emulator/healthz", timeout=5) as response:
            assert response.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.stdout.read() == b""
        assert server.wait(5) == 0


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [str(Path(sys.executable).with_name("anthropic-emulator")), "serve", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


HAIKU = 0.5
"""Micro-dollars per token of an answer."""


async def billed(emulator: Emulator) -> float:
    """Return what the latest request has cost so far."""
    [record] = (await emulator.control("GET", "requests?limit=1")).json["requests"]
    return record["billed_usd_micro"]


async def test_an_answer_is_billed_as_it_is_written(emulator: Emulator) -> None:
    """The prompt when the answer begins, then what is written, also for a client that leaves."""
    body = {**ask("[[emulator: thinking=0 tokens=400 delay_ms=20 ttft_ms=0]]"), "stream": True}
    async with emulator.session.post(emulator.url + "/v1/messages", json=body, headers=HEADERS) as response:
        await response.content.readuntil(b"content_block_delta")
        early = await billed(emulator)
        while (later := await billed(emulator)) == early:
            await response.content.readuntil(b"content_block_delta")
        response.close()
    whole = 400 * HAIKU
    assert 0 < early < later < whole / 2
    while (await emulator.control("GET", "stats")).json["open_streams"]:
        pass
    left = await billed(emulator)
    assert later <= left < whole
    assert (await emulator.control("GET", "stats")).json["cost_usd_micro"] == pytest.approx(left)


@pytest.mark.parametrize("fault", ["disconnect", "cut;after=1", "reset;after=1", "truncated;after=1"])
async def test_an_answer_that_breaks_off_is_billed_whole(emulator: Emulator, fault: str) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        await emulator.stream(ask("[[emulator: thinking=0 tokens=50]]"), x_emulator_fault=fault)
    assert await billed(emulator) >= 50 * HAIKU


@pytest.mark.parametrize("fault", ["400", "429", "529", "500"])
async def test_a_refused_request_costs_nothing(emulator: Emulator, fault: str) -> None:
    await emulator.post(ask("Hi"), x_emulator_fault=fault)
    assert await billed(emulator) == 0
