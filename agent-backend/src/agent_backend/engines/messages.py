"""The engine `messages`: the Messages API, streamed, in our process.

Prompt caching (platform.claude.com/docs/en/build-with-claude/prompt-caching): the prompt is hashed in the
order tools, system, messages. Two breakpoints of the four allowed:

- the end of `system`, kept for an hour: tools and prompt are the same for every session of an agent, so
  that nearly every call reads them from the cache;
- the top-level `cache_control`, which the API moves to the last block by itself, kept for five minutes:
  the steps of a turn and quick follow-ups read the whole history. (Hour entries must come first.)

Nothing of the history is decoded or changed: its blocks are spliced in as stored, because signed thinking
is bound to the exact conversation before it.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from agent_backend.engines.base import HistoryMessage, StepDone, StepEvent, StepRequest, ToolSchema, Usage
from agent_backend.engines.limits import Retries, RetryPolicy, Timeouts, TransientError
from agent_backend.engines.sse import EventTooLargeError, SseParser
from agent_backend.errors import EngineError
from agent_backend.prices import Model, models

if TYPE_CHECKING:
    from agent_backend.engines.answer import Answer
    from agent_backend.engines.transport import Arrivals, Transport

API_VERSION = "2026-10-21"


class _CacheControl(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


_FIVE_MINUTES = _CacheControl("ephemeral")
_ONE_HOUR = _CacheControl("ephemeral", "1h")


class _SystemBlock(msgspec.Struct, frozen=True):
    text: str
    type: Literal["text"] = "text"
    cache_control: _CacheControl = _ONE_HOUR


class _Metadata(msgspec.Struct, frozen=True):
    user_id: str


class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request; empty `tools` and `system` are left out, as the API refuses them."""

    model: str
    max_tokens: int
    stream: bool
    metadata: _Metadata
    thinking: dict[str, str]
    cache_control: _CacheControl
    tools: list[ToolSchema] = []
    system: list[_SystemBlock] = []
    messages: list[HistoryMessage]


UNSEEN_TOKENS = 1024
"""Tokens a provider may have written beyond what arrived when a stream is closed: docs/design/budgets.md."""

_encode = msgspec.json.Encoder().encode


class MessagesEngine:
    """Calls the Messages API. See `engines.base.Engine` for the laws and `limits.Timeouts`.

    `sleep` and `random` serve the waits between attempts only.
    """

    name = "messages"

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeouts: Timeouts | None = None,
        retries: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._url = base_url.rstrip("/") + "/v1/messages"
        self._headers = {
            "x-api-key": api_key,
            "anthropic-version": API_VERSION,
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "user-agent": "myhealth-agent-backend",
        }
        self._timeouts = timeouts or Timeouts()
        self._policy = retries or RetryPolicy()
        self._sleep = sleep
        self._random = random
        self._parts: tuple[Transport, type[Answer]] | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        """Import the HTTP client (in a thread, so that the server goes on answering) and make the pool."""
        await self._ready()

    async def aclose(self) -> None:
        """Close connections; calls under way fail."""
        self._closed = True
        if self._parts is not None:
            await self._parts[0].aclose()

    async def stream(self, request: StepRequest) -> AsyncGenerator[list[StepEvent]]:
        """Make one model call; see the port. Raises EngineError."""
        model = models().get(request.model)
        if model is None:
            raise EngineError("unknown_model", "the price file has no such model", retryable=False)
        body = encode_request(request, model)
        transport, make_answer = await self._ready()
        loop = asyncio.get_running_loop()
        total_at = loop.time() + self._timeouts.total
        retries = Retries(self._policy, self._random)
        while True:
            answer, parser = make_answer(), SseParser()
            try:
                with _Exposed(request, model, answer):
                    arrivals = await transport.post(body, total_at)
                    try:
                        while not answer.finished:
                            chunk = await arrivals.read(started=answer.started)
                            if events := _advance(answer, parser, chunk, arrivals, model):
                                yield events
                            if answer.failure is not None:
                                answer.failure.request_id = arrivals.request_id
                                raise answer.failure
                        await arrivals.drain()
                    finally:
                        arrivals.close()
            except TransientError as error:
                wait = retries.wait_after(error)
                if wait is None or loop.time() + wait > total_at:
                    raise
                if request.again is not None and not error.unbilled:
                    await request.again()
            else:
                return
            await self._sleep(wait)

    async def _ready(self) -> tuple[Transport, type[Answer]]:
        async with self._starting:
            if self._parts is None and not self._closed:
                transport, answer = await asyncio.to_thread(_load)
                if not self._closed:
                    self._parts = transport(self._url, self._headers, self._timeouts), answer
            if self._parts is None or self._closed:
                raise EngineError("engine_closed", "the engine is closed", retryable=True)
            return self._parts


def _load() -> tuple[type[Transport], type[Answer]]:
    """Import what only a call needs: aiohttp alone takes longer than the rest of the boot."""
    from agent_backend.engines.answer import Answer  # noqa: PLC0415 - as above
    from agent_backend.engines.transport import Transport  # noqa: PLC0415 - as above

    return Transport, Answer


def encode_request(request: StepRequest, model: Model) -> bytes:
    """Return the request's JSON. Raises EngineError for a thinking mode the model refuses."""
    thinking = model.thinking[request.thinking]
    if thinking is None:
        raise EngineError(
            "unsupported_thinking", f"the model cannot think {request.thinking!r}", retryable=False
        )
    return _encode(
        _Body(
            model=request.model,
            max_tokens=request.max_tokens,
            stream=True,
            metadata=_Metadata(request.user_ref),
            thinking=thinking,
            cache_control=_FIVE_MINUTES,
            tools=request.tools,
            system=[_SystemBlock(request.system)] if request.system else [],
            messages=request.messages,
        )
    )


def cost_usd_micros(usage: Usage, model: Model) -> int:
    """Return the price of one call in millionths of a US dollar."""
    return model.cost_usd_micros(
        uncached=usage.input_tokens,
        cache_read=usage.cache_read_input_tokens,
        cache_write_5m=usage.cache_write_5m_input_tokens,
        cache_write_1h=usage.cache_write_1h_input_tokens,
        output=usage.output_tokens,
    )


class _Exposed:
    """Keeps a request's exposure while an attempt is made (a generator would cost at every arrival)."""

    __slots__ = ("_answer", "_model", "_request")

    def __init__(self, request: StepRequest, model: Model, answer: Answer) -> None:
        self._request = request
        self._model = model
        self._answer = answer

    def __enter__(self) -> None:
        self._request.exposure.unbilled = False
        self._request.exposure.at_most_usd_micros = None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        exposure, answer = self._request.exposure, self._answer
        exposure.unbilled = isinstance(error, EngineError) and error.unbilled
        if answer.started:
            # Where we close the stream, or the provider has, little more can be written. One that broke, or
            # fell silent, may be written to its end for nobody.
            closed = answer.failure is error or isinstance(error, (GeneratorExit, asyncio.CancelledError))
            unseen = UNSEEN_TOKENS if closed else self._request.max_tokens
            usage = answer.usage_at_most(self._request.max_tokens, unseen)
            exposure.at_most_usd_micros = cost_usd_micros(usage, self._model)


def _advance(
    answer: Answer, parser: SseParser, chunk: bytes, arrivals: Arrivals, model: Model
) -> list[StepEvent]:
    """Turn one arrival into step events; the last arrival's end with StepDone. Raises EngineError."""
    if not chunk:
        raise arrivals.cut_short(started=answer.started)
    try:
        payloads = parser.feed(chunk)
    except EventTooLargeError:
        raise EngineError(
            "provider_protocol", "got an event beyond the limit", retryable=False, started=answer.started
        ) from None
    if not payloads:
        return []
    arrivals.event_seen()
    events = answer.take(payloads)
    if answer.finished and answer.stop_reason is not None:
        usage = answer.usage()
        events.append(
            StepDone(
                content=answer.content(),
                stop_reason=answer.stop_reason,
                usage=usage,
                model=answer.model,
                request_id=arrivals.request_id,
                cost_usd_micros=cost_usd_micros(usage, model),
            )
        )
    return events
