"""The canary's question, asked of the real server: what each answer makes of the gate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import pytest

from myhealth_cli.client import Client
from myhealth_cli.deploy.errors import GateError
from myhealth_cli.deploy.probe import ask, prepare

from ..devprocess import Dev


@pytest.fixture
async def client(stack: Dev) -> AsyncGenerator[Client]:
    async with Client(stack.url, stack.tokens("canary")) as connected:
        await prepare(connected)
        yield connected


async def test_an_answer_passes(client: Client) -> None:
    answer = await ask(client, "Hello. [[emulator: tokens=20 ttft_ms=0]]", first_word_s=20)
    assert answer.characters > 0
    assert 0 < answer.first_word_s <= answer.total_s


@pytest.mark.parametrize(
    ("directive", "says"),
    [
        ("fault=401", "the canary's turn failed: provider_auth"),
        ("stop=refusal", "the canary's turn failed: refusal"),
        ("tokens=0", "ended without a word"),
    ],
)
async def test_an_answer_that_is_none_does_not(client: Client, directive: str, says: str) -> None:
    with pytest.raises(GateError, match=says):
        await ask(client, f"Hello. [[emulator: {directive}]]", first_word_s=20)


async def test_a_model_that_says_nothing_is_not_waited_for_any_longer(
    client: Client,
) -> None:
    began = time.monotonic()
    with pytest.raises(GateError, match=r"first word took more than 0\.5 s"):
        await ask(client, "Hello. [[emulator: ttft_ms=60000]]", first_word_s=0.5)
    assert time.monotonic() - began < 30


async def test_a_slow_answer_that_has_begun_in_time_may_take_longer(client: Client) -> None:
    answer = await ask(client, "Hello. [[emulator: tokens=30 ttft_ms=0 delay_ms=80]]", first_word_s=2)
    assert answer.total_s > 2
