"""The engine `messages` against the tests' own provider, and its request."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from agent_backend.engines.base import Delta, HistoryMessage, StepRequest
from agent_backend.engines.limits import RetryPolicy, Timeouts
from agent_backend.engines.messages import MessagesEngine

from ..ports import free_port
from .conformance import (
    SLEEP,
    Behaviour,
    EngineConformance,
    collect,
    collect_until_error,
    done,
    step_request,
)
from .provider import (
    Provider,
    Reply,
    Step,
    answer,
    event,
    message_end,
    message_start,
    provider,
    text_block,
    thinking_block,
    tool_block,
)

KEY = "sk-ant-test-key"
BEGUN = message_start() + text_block(0, "Hal").rpartition(b"event: content_block_stop")[0]
REJECTED = (
    b'{"type":"error","error":{"type":"invalid_request_error","message":'
    b'"messages.0.content.0.text: you said: rejected: what worries me"},"request_id":"req_1"}'
)
OVERLOADED = event({"type": "error", "error": {"type": "overloaded_error", "message": "You said hello"}})

SCRIPTS: dict[Behaviour, Reply] = {
    "text": Reply([message_start(), text_block(0, "Good ", "morn", "ing"), message_end()]),
    "thinking": Reply([answer(thinking_block(0, "Let me ", "see"), text_block(1, "Yes"))]),
    "tool": Reply(
        [answer(text_block(0, "One moment."), tool_block(1, '{"da', 'ys": 7}'), stop_reason="tool_use")]
    ),
    "max_tokens": Reply([answer(text_block(0, "I "), tool_block(1, '{"days": '), stop_reason="max_tokens")]),
    "refusal": Reply([answer(text_block(0, "Well, "), stop_reason="refusal")]),
    "stall": Reply([BEGUN, None]),
    "rejected": Reply([REJECTED], status="400 Bad Request"),
    "error": Reply([BEGUN, OVERLOADED, None]),
    "cut": Reply([BEGUN], reset=True),
}


class ScriptedRig:
    def __init__(self, engine: MessagesEngine, server: Provider) -> None:
        self.engine = engine
        self.server = server

    def request(self, behaviour: Behaviour) -> StepRequest:
        self.server.replies = [SCRIPTS[behaviour]]
        return step_request(f"{behaviour}: what worries me")

    async def wait_until_left(self) -> None:
        await self.server.wait_until_no_streams()

    async def asked(self) -> int:
        return len(self.server.received)


class TestScripted(EngineConformance):
    @pytest.fixture
    async def rig(self) -> AsyncGenerator[ScriptedRig]:
        async with provider(SCRIPTS["text"]) as server:
            engine = MessagesEngine(server.url, KEY, retries=RetryPolicy(attempts=3, base=0.001))
            yield ScriptedRig(engine, server)
            await engine.aclose()


@pytest.fixture
async def engine_of() -> AsyncGenerator[Callable[..., MessagesEngine]]:
    """Make engines that never wait between attempts and are closed at the end."""
    made: list[MessagesEngine] = []

    def make(url: str, **options: Any) -> MessagesEngine:
        options.setdefault("sleep", _no_sleep)
        made.append(MessagesEngine(url, KEY, **options))
        return made[-1]

    yield make
    for engine in made:
        await engine.aclose()


async def _no_sleep(_seconds: float) -> None:
    pass


OK = Reply([answer(text_block(0, "Hi"))])


# --- the request ------------------------------------------------------------------------------------


async def test_the_request(engine_of: Callable[..., MessagesEngine]) -> None:
    stored = b'[{"type":"thinking","thinking":"\\u00fc","signature":"x=="} , {"type":"text","text":"A"}]'
    history = [
        HistoryMessage(role="user", content=msgspec.Raw(b'[{"type":"text","text":"Q"}]')),
        HistoryMessage(role="assistant", content=msgspec.Raw(stored)),
        HistoryMessage(role="system", content=msgspec.Raw(b'[{"type":"text","text":"now"}]')),
    ]
    async with provider(OK) as server:
        await collect(engine_of(server.url + "/"), step_request("", messages=history, thinking="on"))
    received = server.received[0]
    assert received.line == "POST /v1/messages HTTP/1.1"
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2026-10-21"
    assert stored in received.raw, "history is spliced in byte by byte"
    assert received.body == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 1024,
        "stream": True,
        "metadata": {"user_id": "u1"},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "cache_control": {"type": "ephemeral"},
        "tools": [
            {
                "name": "get_sleep",
                "description": "Sleep per night.",
                "input_schema": SLEEP.input_schema,
            }
        ],
        "system": [
            {
                "type": "text",
                "text": "You are a coach.",
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
            }
        ],
        "messages": [{"role": m.role, "content": json.loads(bytes(m.content))} for m in history],
    }


async def test_the_prefix_is_the_same_bytes_for_every_call(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(OK) as server:
        engine = engine_of(server.url)
        await collect(engine, step_request("one"))
        await collect(engine, step_request("another"))
    first, second = (received.raw.partition(b'"messages":')[0] for received in server.received)
    assert first == second


async def test_empty_parts_are_left_out(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(OK) as server:
        await collect(engine_of(server.url), step_request("x", tools=[], system=""))
    assert not server.received[0].body.keys() & {"tools", "system"}


@pytest.mark.parametrize(
    ("model", "thinking", "sent"),
    [
        ("claude-sonnet-5-5", "off", {"type": "between_tools"}),
        ("claude-haiku-5-5", "off", {"type": "disabled"}),
        ("claude-opus-5-5", "on", {"type": "adaptive", "display": "summarized"}),
    ],
)
async def test_thinking_is_said_as_the_model_wants_it(
    engine_of: Callable[..., MessagesEngine], model: str, thinking: str, sent: dict[str, str]
) -> None:
    async with provider(OK) as server:
        await collect(engine_of(server.url), step_request("x", model=model, thinking=thinking))
    assert server.received[0].body["thinking"] == sent


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "claude-unheard-of"}, "unknown_model"),
        ({"model": "claude-opus-5-5"}, "unsupported_thinking"),
    ],
)
async def test_what_cannot_be_asked_is_not_asked(
    engine_of: Callable[..., MessagesEngine], changes: dict[str, Any], code: str
) -> None:
    async with provider(OK) as server:
        _, error = await collect_until_error(engine_of(server.url), step_request("x", **changes))
    assert (error.code, error.retryable, server.received) == (code, False, [])


async def test_a_closed_engine_says_so(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(OK) as server:
        engine = engine_of(server.url)
        await engine.aclose()
        _, error = await collect_until_error(engine, step_request("x"))
    assert (error.code, server.received) == ("engine_closed", [])


async def test_the_key_is_told_to_nobody(engine_of: Callable[..., MessagesEngine]) -> None:
    engine = engine_of("http://127.0.0.1:9", retries=RetryPolicy(attempts=1))
    _, error = await collect_until_error(engine, step_request("x"))
    assert KEY not in repr(engine) + str(error) + repr(error)


async def test_a_redirect_is_not_followed(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(OK) as other:
        moved = Reply([], status="307 Temporary Redirect", headers=[f"location: {other.url}/v1/messages"])
        async with provider(moved) as server:
            _, error = await collect_until_error(engine_of(server.url), step_request("x"))
        assert (error.status, other.received) == (307, [])


# --- the answer, over the network ---------------------------------------------------------------------


async def test_an_answer_cut_at_every_byte(engine_of: Callable[..., MessagesEngine]) -> None:
    stream = answer(
        thinking_block(0, "hm"),
        text_block(1, "Grüße ", "🏃"),
        tool_block(2, '{"a":', '"ü"}'),
        stop_reason="tool_use",
    )
    cuts = range(1, len(stream), 7)
    async with provider(*(Reply([stream[:at], stream[at:]]) for at in cuts)) as server:
        engine = engine_of(server.url)
        steps = [done(await collect(engine, step_request("x"))) for _ in cuts]
    assert all(step == steps[0] for step in steps)
    assert steps[0].content[1]["text"] == "Grüße 🏃"


@pytest.mark.parametrize("chunked", [True, False])
async def test_byte_by_byte_with_crlf(engine_of: Callable[..., MessagesEngine], *, chunked: bool) -> None:
    stream = answer(text_block(0, "Hello")).replace(b"\n", b"\r\n")
    steps: list[Step] = [bytes([byte]) for byte in stream]
    async with provider(Reply(steps, chunked=chunked)) as server:
        events = await collect(engine_of(server.url), step_request("x"))
    assert done(events).content == [{"type": "text", "text": "Hello"}]


async def test_deltas_of_one_arrival_come_in_one_list(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(OK) as server, aclosing(engine_of(server.url).stream(step_request("x"))) as batches:
        assert len([batch async for batch in batches]) == 1


async def test_a_connection_serves_again(engine_of: Callable[..., MessagesEngine]) -> None:
    late_end = Reply([message_start(), text_block(0, "Hi"), message_end(), 0.01])
    async with provider(late_end) as server:
        engine = engine_of(server.url)
        steps = [done(await collect(engine, step_request("x"))) for _ in range(3)]
    assert server.connections == 1
    assert {step.request_id for step in steps} == {"req_test"}


@pytest.mark.parametrize("cut", ["early end", "reset", "half an event"])
async def test_a_cut_answer_is_an_error(engine_of: Callable[..., MessagesEngine], cut: str) -> None:
    part = BEGUN[:-3] if cut == "half an event" else BEGUN
    async with provider(Reply([part], reset=cut == "reset")) as server:
        _, error = await collect_until_error(engine_of(server.url), step_request("x"))
    assert (error.code, error.started, error.retryable) == ("provider_stream_cut", True, True)
    assert len(server.received) == 1


async def test_an_error_in_mid_answer_names_the_request(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(SCRIPTS["error"]) as server:
        events, error = await collect_until_error(engine_of(server.url), step_request("x"))
    assert (error.code, error.request_id) == ("provider_overloaded", "req_test")
    assert events[-1] == Delta(0, "Hal"), "what had arrived before it is not lost"
    assert "hello" not in str(error)


async def test_an_endless_event_is_cut(engine_of: Callable[..., MessagesEngine]) -> None:
    part = b"data: " + b"x" * 1_000_000
    async with provider(Reply([message_start(), part, *([part] * 10), None])) as server:
        _, error = await collect_until_error(engine_of(server.url), step_request("x"))
        await server.wait_until_no_streams()
    assert (error.code, error.started) == ("provider_protocol", True)


# --- failures before the answer --------------------------------------------------------------------------


def refused(status: str, kind: str, *headers: str, message: str = "You said: secret") -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return Reply([json.dumps(body).encode()], status=status, headers=["request-id: req_9", *headers])


@pytest.mark.parametrize(
    ("status", "kind", "code", "retryable"),
    [
        ("400 Bad Request", "invalid_request_error", "provider_rejected", False),
        ("401 Unauthorized", "authentication_error", "provider_auth", False),
        ("402 Payment Required", "billing_error", "provider_billing", False),
        ("403 Forbidden", "permission_error", "provider_auth", False),
        ("404 Not Found", "not_found_error", "provider_rejected", False),
        ("413 Too Large", "request_too_large", "provider_too_large", False),
        ("429 Too Many Requests", "rate_limit_error", "provider_spend_limit", False),
        ("418 Teapot", "odd", "provider_error", False),
        ("501 Not Implemented", "api_error", "provider_unavailable", True),
    ],
)
async def test_what_waiting_does_not_mend_is_asked_once(
    engine_of: Callable[..., MessagesEngine], status: str, kind: str, code: str, *, retryable: bool
) -> None:
    async with provider(refused(status, kind), OK) as server:
        _, error = await collect_until_error(engine_of(server.url), step_request("x"))
    assert (error.code, error.retryable, error.started) == (code, retryable, False)
    assert (error.status, error.request_id) == (int(status[:3]), "req_9")
    assert error.detail == f"HTTP {status[:3]} {kind}"
    assert len(server.received) == 1


async def test_the_field_at_fault_is_named_and_nothing_quoted(
    engine_of: Callable[..., MessagesEngine],
) -> None:
    message = "messages.3.content.0.text: 'my secret' is not allowed"
    async with provider(refused("400 Bad", "invalid_request_error", message=message)) as server:
        _, error = await collect_until_error(engine_of(server.url), step_request("x"))
    assert error.detail == "HTTP 400 invalid_request_error at messages.3.content.0.text"


@pytest.mark.parametrize(
    "failure",
    [
        refused("500 Oops", "api_error"),
        Reply([b"<html>bad gateway</html>"], status="502 Bad Gateway", headers=[]),
        refused("503 Later", "api_error"),
        refused("504 Late", "timeout_error"),
        refused("529 Overloaded", "overloaded_error"),
        refused("429 Slow", "rate_limit_error", "retry-after: 0"),
        Reply([], reset=True),
        Reply([b": hello\n\n", event({"type": "ping"})], reset=True),
        Reply([OVERLOADED]),
        Reply([]),
    ],
)
async def test_what_may_pass_is_asked_again_before_the_answer(
    engine_of: Callable[..., MessagesEngine], failure: Reply
) -> None:
    async with provider(failure, failure, OK) as server:
        step = done(await collect(engine_of(server.url), step_request("x")))
    assert step.content == [{"type": "text", "text": "Hi"}]
    assert len(server.received) == 3
    assert server.received[0].raw == server.received[2].raw


async def test_waits_honour_retry_after(engine_of: Callable[..., MessagesEngine]) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    replies = [
        refused("429 Slow", "rate_limit_error", "retry-after: 7"),
        refused("529 Overloaded", "overloaded_error"),
        refused("529 Overloaded", "overloaded_error", f"retry-after: {soon}"),
    ]
    async with provider(*replies, OK) as server:
        engine = engine_of(server.url, sleep=sleep, random=lambda: 0.5)
        await collect(engine, step_request("x"))
    assert waited[:2] == [7.25, 0.5]
    assert 17 < waited[2] < 21


async def test_attempts_end(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(refused("529 Overloaded", "overloaded_error")) as server:
        engine = engine_of(server.url, retries=RetryPolicy(attempts=3))
        _, error = await collect_until_error(engine, step_request("x"))
    assert (error.code, error.retryable, len(server.received)) == ("provider_overloaded", True, 3)


@pytest.mark.parametrize("retry_after", ["3600", "nan", "soon", "inf"])
async def test_a_429_that_names_no_bearable_wait_is_not_waited_for(
    engine_of: Callable[..., MessagesEngine], retry_after: str
) -> None:
    async with provider(refused("429 Slow", "rate_limit_error", f"retry-after: {retry_after}")) as server:
        await collect_until_error(engine_of(server.url), step_request("x"))
    assert len(server.received) == 1


async def test_nobody_there(engine_of: Callable[..., MessagesEngine]) -> None:
    engine = engine_of(f"http://127.0.0.1:{free_port()}")
    _, error = await collect_until_error(engine, step_request("x"))
    assert (error.code, error.retryable, error.started) == ("provider_unreachable", True, False)


# --- patience ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "steps", "started"),
    [
        ("first_event", [None], False),
        ("first_event", [b": only a comment", None], False),
        ("idle", [BEGUN, None], True),
        ("total", [BEGUN, *([0.02, event({"type": "ping"})] * 100)], True),
    ],
)
async def test_each_phase_has_its_limit(
    engine_of: Callable[..., MessagesEngine], phase: str, steps: list[Step], *, started: bool
) -> None:
    async with provider(Reply(steps)) as server:
        # As a whole it has to be begun in time.
        limit = 0.5 if phase == "total" else 0.1
        timeouts = Timeouts(**({"idle": 5.0, "first_event": 5.0, "total": 5.0} | {phase: limit}))
        _, error = await collect_until_error(engine_of(server.url, timeouts=timeouts), step_request("x"))
        await server.wait_until_no_streams()
    assert (error.code, error.started, error.retryable) == (f"provider_{phase}_timeout", started, True)
    assert error.request_id == "req_test"
    assert len(server.received) == 1


async def test_a_provider_that_never_answers(engine_of: Callable[..., MessagesEngine]) -> None:
    async with silent_server() as url:
        engine = engine_of(url, timeouts=Timeouts(headers=0.1))
        _, error = await collect_until_error(engine, step_request("x"))
    assert error.code == "provider_headers_timeout"


async def test_pings_keep_an_answer_alive(engine_of: Callable[..., MessagesEngine]) -> None:
    ping: list[Step] = [0.1, event({"type": "ping"})]
    async with provider(Reply([message_start(), *(ping * 8), text_block(0, "Hi"), message_end()])) as server:
        engine = engine_of(server.url, timeouts=Timeouts(idle=0.6))
        assert done(await collect(engine, step_request("x"))).stop_reason == "end_turn"


async def test_time_the_caller_takes_is_not_the_providers(engine_of: Callable[..., MessagesEngine]) -> None:
    async with provider(Reply([BEGUN, 0.02, _rest(BEGUN)])) as server:
        engine = engine_of(server.url, timeouts=Timeouts(idle=0.1))
        async with aclosing(engine.stream(step_request("x"))) as batches:
            await anext(batches)
            await asyncio.sleep(0.3)
            events = [event async for batch in batches for event in batch]
    assert done(events).stop_reason == "end_turn"


def _rest(begun: bytes) -> bytes:
    whole = message_start() + text_block(0, "Hal") + message_end()
    assert whole.startswith(begun)
    return whole.removeprefix(begun)


@asynccontextmanager
async def silent_server() -> AsyncGenerator[str]:
    """Run a server that takes connections and says nothing."""
    left = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()
        left.set()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait_for(left.wait(), 5)
    server.close()


# --- boot -----------------------------------------------------------------------------------------------


def test_the_http_client_is_not_imported_at_boot() -> None:
    code = "import sys, agent_backend.engines.messages; print('aiohttp' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout.strip() == "False"
