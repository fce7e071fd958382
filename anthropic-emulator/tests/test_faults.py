"""Each fault as a client sees it, and the three ways to ask for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from anthropic_emulator.settings import Settings

from .client import HEADERS, Emulator, ask, assemble, parse

TEN = ask("[[emulator: tokens=10]]", stream=True)


@asynccontextmanager
async def opened(
    emulator: Emulator, fault: str, body: object = TEN
) -> AsyncGenerator[aiohttp.ClientResponse]:
    headers = {**HEADERS, "x-emulator-fault": fault}
    async with emulator.session.post(emulator.url + "/v1/messages", json=body, headers=headers) as response:
        yield response


async def received(response: aiohttp.ClientResponse) -> tuple[bytes, BaseException | None]:
    """Read until the end, however it comes."""
    raw = b""
    try:
        async for chunk in response.content.iter_any():
            raw += chunk
    except aiohttp.ClientError as error:
        return raw, error
    return raw, None


def deltas(raw: bytes) -> int:
    return raw.count(b"event: content_block_delta\n")


@pytest.mark.parametrize(
    ("fault", "status", "kind", "retry_after"),
    [
        ("429", 429, "rate_limit_error", "1"),
        ("429;retry_after=7", 429, "rate_limit_error", "7"),
        ("429;retry_after=none", 429, "rate_limit_error", None),
        ("spend_cap", 429, "rate_limit_error", None),
        ("529", 529, "overloaded_error", "1"),
        ("500", 500, "api_error", None),
        ("504", 504, "timeout_error", None),
        ("400", 400, "invalid_request_error", None),
        ("401", 401, "authentication_error", None),
        ("402", 402, "billing_error", None),
        ("403", 403, "permission_error", None),
        ("404", 404, "not_found_error", None),
        ("413", 413, "request_too_large", None),
    ],
)
async def test_an_error_status(
    emulator: Emulator, fault: str, status: int, kind: str, retry_after: str | None
) -> None:
    answer = await emulator.post(TEN, x_emulator_fault=fault)
    assert (answer.status, answer.json["error"]["type"]) == (status, kind)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["request-id"] == answer.json["request_id"]
    assert "anthropic-ratelimit-requests-remaining" in answer.headers


async def test_overloaded_in_mid_stream(emulator: Emulator) -> None:
    async with opened(emulator, "overloaded;after=3") as response:
        assert response.status == 200
        raw, error = await received(response)
    events = parse(raw)
    assert error is None
    assert deltas(raw) == 3
    assert events[-1].name == "error"
    assert events[-1].data["error"] == {"type": "overloaded_error", "message": "Overloaded"}


async def test_truncated_ends_cleanly_without_message_stop(emulator: Emulator) -> None:
    async with opened(emulator, "truncated;after=4") as response:
        raw, error = await received(response)
    assert error is None
    assert deltas(raw) == 4
    assert b"message_stop" not in raw


async def test_cut_ends_inside_the_http_message(emulator: Emulator) -> None:
    async with opened(emulator, "cut;after=2") as response:
        raw, error = await received(response)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert deltas(raw) == 2


async def raw_exchange(emulator: Emulator, fault: str) -> tuple[bytes, type[BaseException] | None]:
    """Talk TCP, because an HTTP client hides how a connection ended."""
    host, port = emulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(TEN).encode()
    lines = [f"{name}: {value}" for name, value in {**HEADERS, "x-emulator-fault": fault}.items()]
    head = "\r\n".join(["POST /v1/messages HTTP/1.1", "host: x", f"content-length: {len(body)}", *lines])
    writer.write(head.encode() + b"\r\n\r\n" + body)
    raw = b""
    try:
        while chunk := await reader.read(65536):
            raw += chunk
    except ConnectionResetError:
        return raw, ConnectionResetError
    finally:
        writer.close()
    return raw, None


async def test_reset_sends_rst_after_some_deltas(emulator: Emulator) -> None:
    raw, error = await raw_exchange(emulator, "reset;after=3")
    assert error is ConnectionResetError
    assert deltas(raw) == 3


async def test_disconnect_sends_rst_before_any_byte(emulator: Emulator) -> None:
    assert await raw_exchange(emulator, "disconnect") == (b"", ConnectionResetError)


async def test_stall_goes_on_after_its_time(emulator: Emulator) -> None:
    async with opened(emulator, "stall;after=2;seconds=0.3") as response:
        loop = asyncio.get_running_loop()
        began = loop.time()
        raw, _ = await received(response)
    assert loop.time() - began >= 0.28
    assert deltas(raw) == 10
    assert raw.endswith(b'data: {"type":"message_stop"}\n\n')


async def test_stall_for_ever_ends_with_its_client(emulator: Emulator) -> None:
    async with opened(emulator, "stall;after=2") as response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await response.content.read()
    async with asyncio.timeout(5):
        outcome = "open"
        while outcome == "open":
            outcome = (await emulator.control("GET", "requests")).json["requests"][-1]["outcome"]
    assert outcome == "gone"
    assert (await emulator.control("GET", "stats")).json["open_streams"] == 0


async def test_slow_takes_its_time_between_deltas(emulator: Emulator) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with opened(emulator, "slow;delay_ms=20") as response:
        raw, _ = await received(response)
    assert deltas(raw) == 10
    assert loop.time() - began >= 9 * 0.018


async def test_delay_comes_before_the_headers(emulator: Emulator) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with opened(emulator, "delay;seconds=0.2") as response:
        assert loop.time() - began >= 0.19
        raw, _ = await received(response)
    assert deltas(raw) == 10


async def test_malformed_json_stands_between_good_events(emulator: Emulator) -> None:
    async with opened(emulator, "malformed;after=1") as response:
        raw, _ = await received(response)
    datas = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    broken = 0
    for data in datas:
        try:
            json.loads(data)
        except json.JSONDecodeError:
            broken += 1
    assert broken == 1
    assert b"message_stop" in datas[-1]


async def test_split_cuts_anywhere_and_loses_nothing(emulator: Emulator) -> None:
    body = ask('[[emulator: text="Größe Übung 深い眠り 💤 für dich" tokens=12]]', stream=True)
    whole = await emulator.stream(body)
    async with opened(emulator, "split;size=5", body) as response:
        chunks = [chunk async for chunk, _ in response.content.iter_chunks()]
    assert len(chunks) > 100
    raw = b"".join(chunks)
    assert assemble(parse(raw))["content"] == assemble(whole)["content"]
    # Byte 0x80-0xBF at the head of a chunk: the cut went through a character.
    assert any(0x80 <= chunk[0] < 0xC0 for chunk in chunks)


async def test_a_fault_after_more_deltas_than_there_are_comes_before_the_end(emulator: Emulator) -> None:
    async with opened(emulator, "truncated;after=99") as response:
        raw, _ = await received(response)
    assert deltas(raw) == 10
    assert b"message_stop" not in raw


@pytest.mark.parametrize(("fault", "status"), [("overloaded", 529), ("stall;seconds=0.1", 200)])
async def test_faults_of_whole_messages(emulator: Emulator, fault: str, status: int) -> None:
    answer = await emulator.post(ask("Hi"), x_emulator_fault=fault)
    assert answer.status == status


@pytest.mark.parametrize("fault", ["truncated", "malformed"])
async def test_a_whole_message_cut_in_half(emulator: Emulator, fault: str) -> None:
    answer = await emulator.post(ask("Hi"), x_emulator_fault=fault)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)


@pytest.mark.parametrize("fault", ["explode", "stall;colour=red", "stall;after=soon"])
async def test_an_unknown_fault_is_refused(emulator: Emulator, fault: str) -> None:
    answer = await emulator.post(TEN, x_emulator_fault=fault)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("emulator: ")
    assert (await emulator.control("POST", "faults", {"fault": fault})).status == 400


async def test_armed_faults_hit_the_next_matching_requests(emulator: Emulator) -> None:
    await emulator.control("POST", "faults", {"fault": "529", "count": 2, "match": "steps"})
    assert (await emulator.post(ask("sleep"))).status == 200
    statuses = [(await emulator.post(ask("steps"))).status for _ in range(3)]
    assert statuses == [529, 529, 200]


async def test_armed_faults_can_be_disarmed(emulator: Emulator) -> None:
    await emulator.control("POST", "faults", {"fault": "500", "count": 9})
    assert len((await emulator.control("GET", "faults")).json["faults"]) == 1
    assert (await emulator.control("DELETE", "faults")).status == 204
    assert (await emulator.post(ask("Hi"))).status == 200


async def test_a_directive_fails_so_often_that_a_retry_succeeds(emulator: Emulator) -> None:
    text = "Hi [[emulator: fault=529;retry_after=0 fault_times=2 id=one]]"
    assert [(await emulator.post(ask(text))).status for _ in range(4)] == [529, 529, 200, 200]
    other = text.replace("id=one", "id=two")
    assert (await emulator.post(ask(other))).status == 529
    always = "Hi [[emulator: fault=500]]"
    assert [(await emulator.post(ask(always))).status for _ in range(2)] == [500, 500]


async def test_a_directive_can_wait_for_a_later_step_of_the_turn(emulator: Emulator) -> None:
    body: dict[str, Any] = ask("[[emulator: tool=t text=done fault=500 fault_step=2]]")
    first = (await emulator.post(body)).json
    result = {"type": "tool_result", "tool_use_id": first["content"][0]["id"], "content": "ok"}
    body["messages"] += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    assert (await emulator.post(body)).status == 500


class TestLimited:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(ttft_ms=0, delay_ms=0, requests_per_minute=2)

    async def test_the_rate_limit_answers_429_until_its_window_ends(self, emulator: Emulator) -> None:
        answers = [await emulator.post(ask("Hi")) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[1].headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert 0 < int(answers[2].headers["retry-after"]) <= 60
        await emulator.advance(float(answers[2].headers["retry-after"]))
        assert (await emulator.post(ask("Hi"))).status == 200
