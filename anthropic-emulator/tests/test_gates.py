"""Answers that wait until a test says so."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from .client import HEADERS, Emulator, ask


@pytest.mark.parametrize(("after", "shown"), [(0, 0), (2, 2), (99, 5)])
async def test_an_answer_waits_at_a_shut_gate_after_so_many_deltas(
    emulator: Emulator, after: int, shown: int
) -> None:
    body = ask(f"[[emulator: tokens=5 gate=g gate_after={after}]]", stream=True)
    async with emulator.session.post(emulator.url + "/v1/messages", json=body, headers=HEADERS) as answer:
        came = b""
        while came.count(b"content_block_delta\n") < shown or b"message_start" not in came:
            came += await answer.content.readany()
        reading = asyncio.create_task(answer.content.read())
        done, _ = await asyncio.wait([reading], timeout=0.3)  # longer than the pump looks for its client
        assert not done
        assert (await emulator.control("GET", "gates/g")).json == {"waiting": 1}
        assert (await emulator.control("GET", "gates/h")).json == {"waiting": 0}
        assert (await emulator.control("POST", "gates/g")).json == {"waited": 1}
        came += await reading
    assert came.count(b"content_block_delta\n") == 5
    assert b"message_stop" in came
    assert (await emulator.control("POST", "gates/g")).json == {"waited": 0}
    assert (await emulator.post(body)).events[-1].name == "message_stop"


async def test_a_whole_message_waits_and_other_gates_are_other_gates(emulator: Emulator) -> None:
    await emulator.control("POST", "gates/another")
    asking = asyncio.create_task(emulator.post(ask("[[emulator: tokens=5 gate=g]]")))
    while (await emulator.control("GET", "stats")).json["open_streams"] == 0:
        pass  # each look is a round trip, which is the wait
    done, _ = await asyncio.wait([asking], timeout=0.1)
    assert not done
    await emulator.control("POST", "gates/g")
    assert (await asking).status == 200


async def test_who_leaves_waits_no_longer_and_a_reset_shuts_the_gates(emulator: Emulator) -> None:
    body = ask("[[emulator: tokens=5 gate=g]]", stream=True)
    async with emulator.session.post(emulator.url + "/v1/messages", json=body, headers=HEADERS) as answer:
        assert answer.status == 200
        answer.close()
    while (await emulator.control("GET", "stats")).json["open_streams"]:
        pass
    assert (await emulator.control("POST", "gates/g")).json == {"waited": 0}
    await emulator.control("POST", "reset")
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(0.1),
            aiohttp.ClientSession() as session,
            session.post(emulator.url + "/v1/messages", json=body, headers=HEADERS) as answer,
        ):
            await answer.read()


async def test_a_gate_after_less_than_nothing_is_refused(emulator: Emulator) -> None:
    answer = await emulator.post(ask("[[emulator: gate=g gate_after=-1]]"))
    assert (answer.status, "gate_after" in answer.json["error"]["message"]) == (400, True)
