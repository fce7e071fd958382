"""The engine `messages` against the emulator, as a process of its own over real sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any

import aiohttp
import msgspec
import pytest

from agent_backend.engines.base import HistoryMessage, StepRequest
from agent_backend.engines.limits import RetryPolicy
from agent_backend.engines.messages import MessagesEngine

from .conformance import Behaviour, EngineConformance, collect, done, step_request

DIRECTIVES: dict[Behaviour, str] = {
    "text": "tokens=5",
    "thinking": "thinking=3 tokens=3",
    "tool": 'tool=get_sleep args={"days":7}',
    "max_tokens": "tokens=3 stop=max_tokens",
    "refusal": "tokens=3 stop=refusal",
    "stall": "tokens=9 fault=stall;after=2",
    "rejected": "fault=400",
    "error": "tokens=9 fault=overloaded;after=2",
    "cut": "tokens=9 fault=reset;after=2",
}


@pytest.fixture(scope="module")
def emulator() -> Generator[str]:
    """Yield the URL of an emulator that answers at once and caches the shortest prompts."""
    options = ["--port", "0", "--ttft-ms", "0", "--delta-delay-ms", "0", "--cache-min-tokens", "0"]
    command = [sys.executable, "-m", "anthropic_emulator", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()
        process.wait(timeout=10)


class EmulatorRig:
    def __init__(self, engine: MessagesEngine, url: str) -> None:
        self.engine = engine
        self._url = url

    def request(self, behaviour: Behaviour) -> StepRequest:
        text = f"[[emulator: {DIRECTIVES[behaviour]}]] what worries me"
        return step_request(text, thinking="on" if behaviour == "thinking" else "off")

    async def wait_until_left(self) -> None:
        async with asyncio.timeout(5):
            while (await self._stats())["open_streams"]:
                pass  # each look is a round trip, which is the wait

    async def asked(self) -> int:
        return int((await self._stats())["requests"])

    async def _stats(self) -> dict[str, Any]:
        url = self._url + "/_emulator/stats"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.json()


@pytest.fixture
async def rig(emulator: str) -> AsyncGenerator[EmulatorRig]:
    engine = MessagesEngine(emulator, "sk-ant-test", retries=RetryPolicy(attempts=3, base=0.001))
    yield EmulatorRig(engine, emulator)
    await engine.aclose()


class TestEmulated(EngineConformance):
    pass


async def test_history_is_read_from_the_cache_and_prefixes_are_kept_longer(rig: EmulatorRig) -> None:
    """Send a conversation as it grows; every call reads what the one before has written."""
    system = "You are a coach. " * 100
    history = [_user("[[emulator: tokens=3]] How did I sleep?")]
    first = done(await collect(rig.engine, step_request("", system=system, messages=history)))
    assert first.usage.cache_write_1h_input_tokens > 300
    assert first.usage.cache_write_5m_input_tokens > 0
    answer = msgspec.Raw(msgspec.json.encode(first.content))
    history += [HistoryMessage(role="assistant", content=answer), _user("[[emulator: tokens=3]] And steps?")]
    second = done(await collect(rig.engine, step_request("", system=system, messages=history)))
    written = first.usage.cache_write_1h_input_tokens + first.usage.cache_write_5m_input_tokens
    assert second.usage.cache_read_input_tokens == written
    assert second.usage.cache_write_1h_input_tokens == 0
    other = done(await collect(rig.engine, step_request("hello", system=system)))
    assert other.usage.cache_read_input_tokens == first.usage.cache_write_1h_input_tokens


async def test_a_tool_loop_with_signed_thinking_is_accepted(rig: EmulatorRig) -> None:
    """The emulator checks signatures, and that each tool_use has its result."""
    ask = '[[emulator: thinking=2 tool=get_sleep args={"days":7} tokens=3]]'
    history = [_user(ask)]
    call = done(await collect(rig.engine, step_request("", thinking="on", messages=history)))
    assert call.content[0]["type"] == "thinking"
    result = {"type": "tool_result", "tool_use_id": call.content[-1]["id"], "content": '{"hours": 7.5}'}
    history += [
        HistoryMessage(role="assistant", content=msgspec.Raw(msgspec.json.encode(call.content))),
        HistoryMessage(role="user", content=msgspec.Raw(msgspec.json.encode([result]))),
    ]
    end = done(await collect(rig.engine, step_request("", thinking="on", messages=history)))
    assert (call.stop_reason, end.stop_reason) == ("tool_use", "end_turn")


async def test_overload_passes(rig: EmulatorRig) -> None:
    text = "[[emulator: tokens=3 fault=529;retry_after=0 fault_times=2]]"
    before = await rig.asked()
    assert done(await collect(rig.engine, step_request(text))).stop_reason == "end_turn"
    assert await rig.asked() == before + 3


def _user(text: str) -> HistoryMessage:
    content = msgspec.Raw(msgspec.json.encode([{"type": "text", "text": text}]))
    return HistoryMessage(role="user", content=content)
