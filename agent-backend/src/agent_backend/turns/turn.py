"""One turn: model steps and tool steps until it ends; each is settled before the next begins.

Recovery needs nothing special: a turn that was taken over begins by looking at what is settled. Open tool
calls are run, otherwise the model is asked; an unfinished step left no message behind, so it starts anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from agent_backend import events as agui
from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.db.leases import Claim
from agent_backend.db.pool import Database
from agent_backend.db.tool_calls import ParkedCall, ToolCallRow
from agent_backend.engines.base import Engine, StepDone, StepRequest
from agent_backend.errors import EngineError, LeaseLost, OverBudget, ToolFailed
from agent_backend.sessions import FinalState
from agent_backend.telemetry import Log, metrics, note_first
from agent_backend.tools.base import ToolResult
from agent_backend.transcript import StoredMessage, to_agui, with_notice
from agent_backend.turns import consent, history, parking, safety
from agent_backend.turns.fanout import Interrupted, LiveSession
from agent_backend.turns.last_words import last_words
from agent_backend.turns.settling import Settler
from agent_backend.turns.spending import TurnAccount
from agent_backend.turns.step import StepWriter
from agent_backend.turns.toolbox import Toolbox
from agent_backend.turns.versions import FrozenAgent
from agent_backend.turns.words import FixedWords, said

_log = Log("turns")

CANCELLED_RESULT = "The user cancelled this call before it finished."
FAILED_RESULT = "The turn failed before this call finished."


class Situation(NamedTuple):
    """What the model should know about now: where the user's clock stands and which language they read.

    `refused`: what the turn says instead of asking the model.
    """

    time_zone: str
    locale: str
    text: str
    refused: FixedWords | None = None


class SituationOf(Protocol):
    """Tells a user's situation at this moment."""

    async def __call__(self, user_id: UUID) -> Situation:
        """Return it; one query at most."""
        ...


class TurnRun:
    """Runs one claimed turn of a live session to its end."""

    def __init__(
        self,
        live: LiveSession,
        claim: Claim,
        *,
        agent: FrozenAgent,
        engine: Engine,
        database: Database,
        settler: Settler,
        toolbox: Toolbox,
        situation_of: SituationOf,
        consents: consent.Consents,
        call_seconds: float,
        account: TurnAccount,
        restarts: Callable[[], bool] = lambda: False,
    ) -> None:
        assert claim.turn_id is not None, "a turn is claimed with its session"
        self._live = live
        self._claim = claim
        self._turn_id: UUID = claim.turn_id
        self._agent = agent
        self._engine = engine
        self._database = database
        self._settler = settler
        self._toolbox = toolbox
        self._situation_of = situation_of
        self._consents = consents
        self._restarts = restarts
        self._account = account
        self._call_seconds = call_seconds
        self._calls: dict[str, ToolCallRow] = {}
        self._stored: list[StoredMessage] = []
        self._context: StoredMessage | None = None
        self._situation: Situation | None = None
        self._writer: StepWriter | None = None
        self._watch = safety.Watch(str(self._turn_id))
        self._usage = store.NO_USAGE
        self._began = time.monotonic()

    # --- the course of a turn ---

    async def run(self) -> Claim | None:
        """Run to the end; returns the next turn if the session was kept for it. Raises LeaseLost."""
        if self._claim.cancel_requested:
            self._live.request_cancel(self._turn_id)
        await self._load()
        while True:
            # Before anything that could refuse the step: help is named without consent, budget or model.
            if words := await self._must_stop():
                return (await self.say(words, "completed")).next
            if self._situation is not None and self._situation.refused is not None:
                return (await self.say(self._situation.refused, "failed")).next
            calls = history.open_calls(self._stored)
            over = None if calls else self._over_budget()
            if over is not None:
                return (await self._over(over)).next
            settled = await (self._tool_step(calls) if calls else self._model_step())
            if isinstance(settled, _Ended):
                return settled.next
            if settled.cancel:
                self._live.request_cancel(self._turn_id)

    async def _must_stop(self) -> FixedWords | None:
        assert self._situation is not None, "loaded first"
        return await self._watch.stop(self._stored, self._situation.locale)

    async def _is_unsafe(self, content: list[dict[str, Any]]) -> bool:
        assert self._situation is not None, "loaded first"
        return await safety.flag_in_answer(content, self._situation.locale) is not None

    def _over_budget(self) -> str | None:
        """Return which of the agent's bounds of a turn allows no further model call."""
        if self._usage.model_calls >= self._agent.max_steps:
            return "steps"
        if self._usage.cost_usd_micros >= self._agent.usd_micros_per_turn:
            return "turn"
        return None

    async def _over(self, cause: str, resets_at: dt.datetime | None = None) -> _Ended:
        """End with the coach's last words: a budget allows no further model call."""
        assert self._situation is not None, "loaded first"
        situation = self._situation
        return await self.say(
            last_words(cause, resets_at, situation.locale, situation.time_zone), "completed"
        )

    async def _load(self) -> None:
        """Bring the history into memory; the first turn of a session needs no query for it."""
        claim = self._claim
        first_ever = claim.last_message == 1 and claim.attempts == 1 and claim.message_id and claim.content
        if first_ever:
            self._remember(1, store.NewMessage(claim.message_id or "", "user", claim.content or "[]"))
        else:
            read = await store.read_messages(self._database, self._live.user_id, self._live.session_id)
            self._stored = [] if read is None else read.messages
        if claim.attempts > 1:
            await self._load_usage()
            await self._load_calls()
        self._situation = await self._situation_of(self._live.user_id)
        told = any(m.role == "system" and m.turn_id == str(self._turn_id) for m in self._stored)
        if not told:
            text = safety.told(self._situation.text, self._stored, str(self._turn_id))
            block = msgspec.json.encode([{"type": "text", "text": text}]).decode()
            self._context = StoredMessage(0, "", str(self._turn_id), "system", block)

    async def _load_usage(self) -> None:
        row = await store.read_turn(self._database, self._live.user_id, self._live.session_id, self._turn_id)
        if row is not None:
            self._usage = store.StepUsage(
                model_calls=row.model_calls,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                cache_read_input_tokens=row.cache_read_input_tokens,
                cache_write_input_tokens=row.cache_write_input_tokens,
                cost_usd_micros=row.cost_usd_micros,
            )

    async def _load_calls(self) -> None:
        """Learn what became of the calls this turn has waited for."""
        if self._agent.waits:
            rows = await tool_calls.read(
                self._database, self._live.user_id, self._live.session_id, self._turn_id
            )
            self._calls = {row.id: row for row in rows}

    def _remember(self, n: int, message: store.NewMessage) -> None:
        self._stored.append(StoredMessage(n, message.id, str(self._turn_id), message.role, message.content))

    # --- model steps ---

    async def _model_step(self) -> store.Settled | _Ended:
        if await self._consents.missing(self._live.user_id, "model_call"):
            return await self._without_consent()
        writer = self._writer = StepWriter(self._next_message_id(with_context=True))
        try:
            done = await self._stream(writer)
        except Interrupted:
            return await self._cancel(writer)
        except EngineError as error:
            metrics.model_calls[error.code] += 1
            _log.warning("model_call_failed", error=error, turn_id=self._turn_id, code=error.code)
            if error.retryable and error.started and self._restarts():
                # Not the model's failure: the step begins anew under a new epoch, as after a crash.
                raise LeaseLost from error
            return await self._fail(error.code, _explain(error), writer)
        except OverBudget as over:
            return await self._over(over.scope, over.resets_at)
        _count(done)
        return await self._after_model(writer, done)

    async def _stream(self, writer: StepWriter) -> StepDone:
        """Call the model and publish as it speaks. Raises EngineError, Interrupted."""
        live = self._live
        messages = [*self._stored, self._context] if self._context else self._stored
        request = StepRequest(
            model=self._agent.model,
            system=self._agent.system,
            tools=self._agent.offered(),
            messages=history.for_model(messages),
            max_tokens=self._agent.max_tokens,
            thinking=self._agent.thinking,
            session_id=str(live.session_id),
            user_ref=user_ref(live.user_id),
        )
        live.enter_step(self._turn_id)
        try:
            request = await self._account.reserve(request)
            async with aclosing(self._engine.stream(request)) as stream:
                async for batch in stream:
                    events = writer.feed(batch)
                    if events:
                        live.publish_unsettled(events)
                        note_first("first_token")
        except asyncio.CancelledError:
            if live.was_interrupted(self._turn_id):
                raise Interrupted from None
            raise
        finally:
            live.leave_step()
        assert writer.done is not None, "an engine ends with StepDone or raises"
        self._account.ended(writer.done)
        return writer.done

    async def _after_model(self, writer: StepWriter, done: StepDone) -> store.Settled | _Ended:
        usage = _usage_of(done)
        self._usage = _add(self._usage, usage)
        if done.stop_reason == "refusal":
            return await self._refused(writer, usage)
        wants_tools = any(block["type"] == "tool_use" for block in done.content)
        # An answer that must not stand alone does not end the turn: what follows it is said next.
        unsafe = not wants_tools and await self._is_unsafe(done.content)
        content = safety.without_server_tools(done.content) if unsafe else done.content
        messages = self._messages_for(writer.message_id, content)
        closing = writer.closings()
        if writer.showed_more_than(content):
            closing.append(self._snapshot(messages))
        if wants_tools or unsafe or done.stop_reason == "pause_turn":
            if not closing:
                # Every settle has a place in the log; a pause without visible output has nothing to close.
                return await self._fail("model_paused", "The model paused without output.", writer)
            return await self._settle(closing, messages, usage=usage)
        if done.stop_reason == "max_tokens" and self._account.shortened and closing:
            # Cut because the budget is at its end: the next reservation says which, and the coach says so.
            return await self._settle(closing, messages, usage=usage)
        finished = self._finished(agui.SuccessOutcome(), {"stopReason": done.stop_reason}, done.model)
        return await self._end([*closing, finished], "completed", messages, usage=usage)

    async def _refused(self, writer: StepWriter, usage: store.StepUsage) -> _Ended:
        """End with what was shown of the step discarded: readers get the conversation without it."""
        events = [
            *writer.closings(),
            self._snapshot([]),
            self._error("refusal", "The model declined to answer."),
        ]
        return await self._end(events, "failed", [], error_code="refusal", usage=usage)

    # --- tool steps ---

    async def _tool_step(self, calls: list[history.ToolCall]) -> store.Settled | _Ended:
        """Settle the results of open calls, run here or answered from outside; wait for the rest."""
        todo = parking.sort(calls, self._agent, self._calls)
        if todo.to_run:
            return await self._run_here(todo.to_run)
        if not todo.answered:
            return await self._ask_or_park(calls, todo.to_park)
        if self._live.cancel_requested == self._turn_id:
            return await self._cancel(None)
        return await self._settle_results(todo.answered)

    async def _ask_or_park(
        self, calls: list[history.ToolCall], to_park: list[ParkedCall]
    ) -> store.Settled | _Ended:
        """Wait for answers; calls whose tools refuse them anyway are answered before anybody is asked."""
        new = {each.id for each in to_park if each.kind == "approval" and each.id not in self._calls}
        # To see whether it would refuse, a tool reads what it would change.
        if new and await self._consents.missing(self._live.user_id, "health_data"):
            return await self._without_consent()
        refused = await self._refused_early([call for call in calls if call.id in new])
        return await (self._settle_results(refused) if refused else self._park(to_park))

    async def _refused_early(
        self, calls: list[history.ToolCall]
    ) -> list[tuple[history.ToolCall, ToolResult]]:
        assert self._situation is not None, "loaded first"
        zone, locale = self._situation.time_zone, self._situation.locale
        checked = [
            (call, await self._toolbox.refusal(call, self._live, self._turn_id, zone, locale))
            for call in calls
        ]
        return [(call, refusal) for call, refusal in checked if refusal is not None]

    async def _park(self, calls: list[ParkedCall]) -> store.Settled | _Ended:
        """Give the session back until somebody answers, unless the turn is to stop."""
        if self._live.cancel_requested == self._turn_id:
            return await self._cancel(None)
        expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._call_seconds)
        events = parking.pending_events(calls, expires_at)
        if not await self._settler.park(self._live, self._turn_id, events, calls, self._call_seconds):
            return store.Settled(again=False, cancel=True, next=None)
        _log.info("turn_parked", turn_id=self._turn_id, session_id=self._live.session_id, calls=len(calls))
        return _Ended(None)

    async def _run_here(self, calls: list[history.ToolCall]) -> store.Settled | _Ended:
        """Run calls side by side and settle their results; one with an effect settles with it, alone."""
        live = self._live
        assert self._situation is not None, "loaded first"
        if await self._consents.missing(live.user_id, "health_data"):
            return await self._without_consent()
        try:
            live.enter_step(self._turn_id)
            try:
                results = await self._toolbox.run_all(
                    calls,
                    live,
                    self._turn_id,
                    self._agent,
                    self._situation.time_zone,
                    self._situation.locale,
                    approved={row.id for row in self._calls.values() if row.status == "ok"},
                )
            except asyncio.CancelledError:
                if live.was_interrupted(self._turn_id):
                    raise Interrupted from None
                raise
            finally:
                live.leave_step()
        except Interrupted:
            return await self._cancel(None)
        settled: store.Settled | None = None
        plain: list[tuple[history.ToolCall, ToolResult]] = []
        for call, result in zip(calls, results, strict=True):
            if result.effect is None:
                plain.append((call, result))
            else:
                settled = await self._settle_results([(call, result)])
        if plain:
            settled = await self._settle_results(plain)
        assert settled is not None, "a tool step has calls"
        return settled

    async def _settle_results(self, results: list[tuple[history.ToolCall, ToolResult]]) -> store.Settled:
        messages, events = self._results(results)
        try:
            return await self._settle(events, messages, effect=results[0][1].effect)
        except ToolFailed as error:
            # Its effect found things changed: neither was written, and the model is told instead.
            refused = ToolResult(content=str(error), is_error=True)
            return await self._settle_results([(results[0][0], refused)])

    def _results(
        self, results: list[tuple[history.ToolCall, ToolResult]]
    ) -> tuple[list[store.NewMessage], list[bytes]]:
        message_id = self._next_message_id(with_context=False)
        blocks: list[dict[str, Any]] = []
        events: list[bytes] = []
        for index, (call, result) in enumerate(results):
            block: dict[str, Any] = {"type": "tool_result", "tool_use_id": call.id, "content": result.content}
            if result.is_error:
                block["is_error"] = True
            blocks.append(block)
            own_id = message_id if index == 0 else f"{message_id}.{index}"
            events.append(
                agui.encode(
                    agui.ToolCallResult(message_id=own_id, tool_call_id=call.id, content=result.content)
                )
            )
        return [store.NewMessage(message_id, "tool", msgspec.json.encode(blocks).decode())], events

    # --- ends ---

    async def _cancel(self, writer: StepWriter | None) -> _Ended:
        """End by request."""
        messages, events = self._cut_short(writer, CANCELLED_RESULT)
        events.append(self._finished(agui.CancelledOutcome(), None, self._agent.model))
        return await self._end(events, "cancelled", messages)

    async def _fail(self, code: str, message: str, writer: StepWriter | None = None) -> _Ended:
        """End with an error."""
        messages, events = self._cut_short(writer, FAILED_RESULT)
        events.append(self._error(code, message))
        # A call that ended well is closed with this, and the next prompt is measured by what it says.
        usage = store.NO_USAGE if writer is None or writer.done is None else _usage_of(writer.done)
        return await self._end(events, "failed", messages, error_code=code, usage=usage)

    def _cut_short(
        self, writer: StepWriter | None, answer: str
    ) -> tuple[list[store.NewMessage], list[bytes]]:
        """Return what to settle of an unfinished step, so that the history stays valid for the provider.

        Of a model step the visible text is kept; a tool step's open calls get `answer` as their error.
        """
        if writer is None:
            todo = parking.sort(history.open_calls(self._stored), self._agent, self._calls)
            waited_for = [history.ToolCall(call.id, call.name, {}) for call in todo.to_park]
            cut = ToolResult(content=answer, is_error=True)
            errors = [*todo.answered, *((call, cut) for call in (*todo.to_run, *waited_for))]
            return self._results(errors) if errors else ([], [])
        kept = writer.kept()
        messages = self._messages_for(writer.message_id, kept.content)
        events = writer.closings()
        if kept.dropped:
            events.append(self._snapshot(messages))
        return messages, events

    async def fail(self, code: str, message: str) -> Claim | None:
        """End the turn from outside: it cannot go on. Returns the next turn, as `run` does."""
        if not self._stored:
            await self._load()
        return (await self._fail(code, message, self._writer)).next

    async def _end(
        self,
        events: list[bytes],
        state: FinalState,
        messages: list[store.NewMessage],
        *,
        error_code: str | None = None,
        usage: store.StepUsage = store.NO_USAGE,
    ) -> _Ended:
        call = self._account.close()
        settled = await self._settler.settle(
            self._live,
            self._turn_id,
            events,
            messages=messages,
            usage=usage,
            final_state=state,
            error_code=error_code,
            call=call,
        )
        self._account.closed(call)
        metrics.turns[state] += 1
        seconds = time.monotonic() - self._began
        metrics.turn_seconds.observe(seconds)
        _log.info(
            "turn_ended",
            turn_id=self._turn_id,
            session_id=self._live.session_id,
            state=state,
            code=error_code,
            ms=round(seconds * 1000),
            model_calls=self._usage.model_calls,
        )
        return _Ended(settled.next)

    async def say(self, words: FixedWords, state: FinalState) -> _Ended:
        """End the turn with a fixed text of ours in the model's place.

        A turn that fails with it has the notice as its error code. Open calls get an error result first, so
        that the history stays valid.
        """
        messages, events = self._cut_short(None, FAILED_RESULT)
        own_id = self._next_message_id(with_context=True, after=len(messages))
        message_id = with_notice(own_id, words.notice)
        messages += self._messages_for(message_id, [{"type": "text", "text": words.text}])
        events += said(message_id, words)
        if state == "completed":
            result = {"stopReason": "notice", "notice": words.notice}
            events.append(self._finished(agui.SuccessOutcome(), result, self._agent.model))
            return await self._end(events, state, messages)
        events.append(self._error(words.notice, words.text))
        return await self._end(events, state, messages, error_code=words.notice)

    async def _without_consent(self) -> _Ended:
        """End instead of doing what the user has not consented to, or not any more."""
        if self._live.cancel_requested == self._turn_id:
            return await self._cancel(None)
        assert self._situation is not None, "loaded first"
        return await self.say(consent.words(self._situation.locale), "failed")

    # --- settling ---

    async def _settle(
        self,
        events: list[bytes],
        messages: list[store.NewMessage],
        *,
        usage: store.StepUsage = store.NO_USAGE,
        effect: Any = None,
    ) -> store.Settled:
        call = self._account.close()
        settled = await self._settler.settle(
            self._live, self._turn_id, events, messages=messages, usage=usage, effect=effect, call=call
        )
        self._account.closed(call)
        for message in messages:
            self._remember(self._last_n() + 1, message)
        self._context = None
        self._writer = None
        return settled

    def _messages_for(self, message_id: str, content: list[dict[str, Any]]) -> list[store.NewMessage]:
        """Return the rows of a model step; before a turn's first answer, what the model was told of now.

        Without an answer there are none: the provider wants a system message to precede an assistant's.
        """
        if not content:
            return []
        messages: list[store.NewMessage] = []
        if self._context is not None:
            context_id = f"{message_id}.context"
            messages.append(store.NewMessage(context_id, "system", self._context.content))
        messages.append(store.NewMessage(message_id, "assistant", msgspec.json.encode(content).decode()))
        return messages

    def _last_n(self) -> int:
        return self._stored[-1].n if self._stored else 0

    def _next_message_id(self, *, with_context: bool, after: int = 0) -> str:
        offset = after + (2 if with_context and self._context is not None else 1)
        return f"m{self._live.epoch}-{self._last_n() + offset}"

    # --- events ---

    def _finished(
        self, outcome: agui.SuccessOutcome | agui.CancelledOutcome, result: dict[str, str] | None, model: str
    ) -> bytes:
        total = self._usage
        cached, written = total.cache_read_input_tokens, total.cache_write_input_tokens
        usage = agui.TokenUsage(
            provider="anthropic",
            model=model,
            input_tokens=total.input_tokens + cached + written,
            output_tokens=total.output_tokens,
            cached_input_tokens=cached,
            cache_write_input_tokens=written,
        )
        return agui.encode(
            agui.RunFinished(
                thread_id=str(self._live.session_id),
                run_id=str(self._turn_id),
                outcome=outcome,
                timestamp=round(time.time() * 1000),
                result=result,
                usage=[usage] if total.model_calls else None,
            )
        )

    def _error(self, code: str, message: str) -> bytes:
        return agui.encode(agui.RunError(message=message, code=code, timestamp=round(time.time() * 1000)))

    def _snapshot(self, added: list[store.NewMessage]) -> bytes:
        """Return the conversation as it will be once `added` is settled."""
        fresh = [
            StoredMessage(self._last_n() + i, message.id, str(self._turn_id), message.role, message.content)
            for i, message in enumerate(added, 1)
        ]
        return agui.encode(agui.MessagesSnapshot(messages=to_agui([*self._stored, *fresh])))


class _Ended(NamedTuple):
    """The turn is over."""

    next: Claim | None


def user_ref(user_id: UUID) -> str:
    """Return the opaque reference the provider gets for a user; not reversible to our id."""
    return hashlib.blake2s(user_id.bytes, person=b"provider").hexdigest()


def run_started(session_id: UUID, turn_id: UUID, message_id: str, text: str) -> bytes:
    """Return a turn's RUN_STARTED, with the user's message for readers who did not send it."""
    thread, run = str(session_id), str(turn_id)
    message = agui.InputMessage(id=message_id, content=text)
    return agui.encode(
        agui.RunStarted(
            thread_id=thread,
            run_id=run,
            timestamp=round(time.time() * 1000),
            input=agui.RunInput(thread_id=thread, run_id=run, messages=[message]),
        )
    )


def _usage_of(done: StepDone) -> store.StepUsage:
    usage = done.usage
    return store.StepUsage(
        model_calls=1,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_input_tokens=usage.cache_read_input_tokens,
        cache_write_input_tokens=usage.cache_write_5m_input_tokens + usage.cache_write_1h_input_tokens,
        cost_usd_micros=done.cost_usd_micros,
    )


def _add(a: store.StepUsage, b: store.StepUsage) -> store.StepUsage:
    return store.StepUsage(**{field: getattr(a, field) + getattr(b, field) for field in a.__struct_fields__})


def _count(done: StepDone) -> None:
    usage = done.usage
    metrics.model_calls[done.stop_reason] += 1
    metrics.model_tokens["input"] += usage.input_tokens
    metrics.model_tokens["cache_read"] += usage.cache_read_input_tokens
    metrics.model_tokens["cache_write"] += (
        usage.cache_write_5m_input_tokens + usage.cache_write_1h_input_tokens
    )
    metrics.model_tokens["output"] += usage.output_tokens
    metrics.model_cost_usd_micros += done.cost_usd_micros


def _explain(error: EngineError) -> str:
    if error.retryable:
        return "The model could not answer right now. Please try again in a moment."
    return "The model could not answer this."
