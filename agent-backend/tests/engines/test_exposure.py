"""What a call that did not end well may be billed: the engine's bound against the emulator's own bill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent_backend.engines.base import Delta, StepRequest
from agent_backend.engines.limits import RetryPolicy, Timeouts
from agent_backend.engines.messages import UNSEEN_TOKENS, MessagesEngine
from agent_backend.errors import EngineError, OverBudget

from ..emulator import emulator
from .conformance import collect, step_request

OUTPUT = 10
"""Micro-dollars per token of Sonnet's answers."""
MAX_TOKENS = 3000


@pytest.fixture(scope="module")
def url() -> Generator[str]:
    with emulator() as address:
        yield address


@pytest.fixture
async def engine(url: str) -> AsyncGenerator[MessagesEngine]:
    made = MessagesEngine(
        url, "sk-test", retries=RetryPolicy(attempts=2, base=0.001), timeouts=Timeouts(idle=0.5)
    )
    yield made
    await made.aclose()


def request(directive: str, **more: Any) -> StepRequest:
    return step_request(
        f"[[emulator: {directive}]] {uuid4()}", model="claude-sonnet-5-5", max_tokens=MAX_TOKENS, **more
    )


async def billed(url: str, asked: StepRequest) -> float:
    """Return what the provider has billed for this request, all its attempts together, once it is over."""
    own = bytes(asked.messages[-1].content)
    async with aiohttp.ClientSession(url) as http:
        while True:
            async with http.get("/_emulator/stats") as response:
                if not (await response.json())["open_streams"]:
                    break
        async with http.get("/_emulator/requests", params={"limit": "500"}) as response:
            records = (await response.json())["requests"]
    text = own.decode()[-40:-4]
    return sum(each["billed_usd_micro"] for each in records if text in str(each["body"]))


@pytest.mark.parametrize("fault", ["400", "429;retry_after=none", "529;retry_after=0", "spend_cap"])
async def test_what_is_refused_before_the_model_began_is_free(
    engine: MessagesEngine, url: str, fault: str
) -> None:
    asked = request(f"fault={fault}")
    with pytest.raises(EngineError):
        await collect(engine, asked)
    assert asked.exposure.unbilled
    assert await billed(url, asked) == 0


async def test_without_a_connection_nothing_is_billed() -> None:
    engine = MessagesEngine("http://127.0.0.1:9", "sk-test", retries=RetryPolicy(attempts=1))
    asked = request("tokens=3")
    with pytest.raises(EngineError):
        await collect(engine, asked)
    assert asked.exposure.unbilled
    await engine.aclose()


@pytest.mark.parametrize("fault", ["disconnect", "500"])
async def test_before_the_beginning_of_an_answer_only_the_reservation_bounds_it(
    engine: MessagesEngine, fault: str
) -> None:
    asked = request(f"tokens=9 fault={fault}")
    with pytest.raises(EngineError):
        await collect(engine, asked)
    assert not asked.exposure.unbilled
    assert asked.exposure.at_most_usd_micros is None


@pytest.mark.parametrize("fault", ["cut;after=2", "reset;after=2", "truncated;after=2", "stall;after=2"])
async def test_a_stream_that_breaks_may_be_written_to_its_end(
    engine: MessagesEngine, url: str, fault: str
) -> None:
    asked = request(f"tokens=2500 fault={fault}")
    with pytest.raises(EngineError):
        await collect(engine, asked)
    bound = asked.exposure.at_most_usd_micros
    assert bound is not None
    assert await billed(url, asked) <= bound
    assert bound >= MAX_TOKENS * OUTPUT


async def test_an_error_in_the_stream_bounds_the_answer_by_what_arrived(
    engine: MessagesEngine, url: str
) -> None:
    asked = request("tokens=2500 fault=overloaded;after=3")
    with pytest.raises(EngineError):
        await collect(engine, asked)
    bound = asked.exposure.at_most_usd_micros
    assert bound is not None
    assert await billed(url, asked) <= bound
    assert UNSEEN_TOKENS * OUTPUT < bound < (UNSEEN_TOKENS + 200) * OUTPUT


@pytest.mark.parametrize("thinking", ["off", "on"])
async def test_a_cancelled_answer_is_bounded_by_what_arrived_unless_it_thought(
    engine: MessagesEngine, url: str, thinking: str
) -> None:
    words = "thinking=2000" if thinking == "on" else "tokens=2000"
    asked = request(f"{words} delay_ms=2", thinking=thinking)
    async with aclosing(engine.stream(asked)) as events:
        async for batch in events:
            if any(isinstance(each, Delta) for each in batch):
                break
    bound = asked.exposure.at_most_usd_micros
    assert bound is not None
    assert await billed(url, asked) <= bound
    assert (bound >= MAX_TOKENS * OUTPUT) == (thinking == "on")


async def test_a_task_that_is_cancelled_leaves_the_same_bound(engine: MessagesEngine, url: str) -> None:
    asked, begun = request("tokens=2000 delay_ms=2"), asyncio.Event()

    async def run() -> None:
        async for _ in engine.stream(asked):
            begun.set()

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bound = asked.exposure.at_most_usd_micros
    assert bound is not None
    assert await billed(url, asked) <= bound < MAX_TOKENS * OUTPUT


async def test_the_caller_is_asked_before_an_attempt_that_may_be_billed_twice(
    engine: MessagesEngine, url: str
) -> None:
    attempts: list[float] = []

    async def again() -> None:
        attempts.append(await billed(url, asked))
        raise OverBudget("user_day", None)

    asked = request("tokens=9 fault=disconnect", again=again)
    with pytest.raises(OverBudget):
        await collect(engine, asked)
    assert len(attempts) == 1
    assert attempts[0] > 0
    free = request("tokens=9 fault=529;retry_after=0", again=again)
    with pytest.raises(EngineError):
        await collect(engine, free)
    assert len(attempts) == 1, "what was refused costs nothing twice"
