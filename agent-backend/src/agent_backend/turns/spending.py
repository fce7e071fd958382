"""Money in a turn: every model call is reserved before it is made, and closed by the settle of its step.

The ledger is in Postgres (`db.ledger`); what is promised and why: docs/design/budgets.md.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Final, TypeAlias
from uuid import UUID, uuid4

import msgspec

from agent_backend.agents import Agent
from agent_backend.db import ledger
from agent_backend.db.ledger import Ask, CallEnd, GlobalUse
from agent_backend.db.pool import Database
from agent_backend.engines.base import StepDone, StepRequest
from agent_backend.errors import BudgetExceeded, OverBudget
from agent_backend.prices import models
from agent_backend.telemetry import Log, metrics
from agent_backend.tools.base import Tool
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED
from agent_backend.turns.fanout import LiveSession
from agent_backend.turns.versions import FrozenAgent, freeze

_log = Log("spending")

LEAST_TOKENS = 256
"""An answer shorter than this is not worth asking for."""
OVERHEAD_TOKENS = 1000
"""What the provider adds to a prompt: the tools' instructions, a few tokens per message."""
_ATTEMPTS = 5
_RETRY_SECONDS = 0.05
_LEVELS: Final = (80, 100)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be spent, in micro-dollars: by a user, and by all together; days and months are UTC's."""

    user_day: int = 1_000_000_000
    user_month: int = 10_000_000_000
    global_day: int = 10_000_000_000
    global_month: int = 100_000_000_000


class Spending:
    """The budgets of this machine. One per process."""

    def __init__(
        self,
        database: Database,
        incarnation: UUID,
        limits: Limits,
        agents: Mapping[str, Agent],
        tools: Mapping[str, Tool],
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._limits = limits
        self.limits = _text(limits, agents, tools)
        """The budgets as the ledger's functions read them."""
        self._told: dict[str, int] = {}
        self._refusing: dict[str, dt.datetime | None] = {}

    def account(self, live: LiveSession, turn_id: UUID) -> TurnAccount:
        """Return what keeps one turn's calls in the books."""
        return TurnAccount(partial(self._reserve, live, turn_id))

    async def _reserve(self, live: LiveSession, turn_id: UUID, ask: _Call, instead_of: UUID | None) -> int:
        """Reserve; return how many tokens the answer may have. Raises OverBudget, LeaseLost.

        A request that is sent again asks for as much as before, so it gets all of it or nothing.
        """
        reserved = await self._asked(
            Ask(
                call_id=ask.id,
                session_id=live.session_id,
                incarnation=self._incarnation,
                epoch=live.epoch,
                turn_id=turn_id,
                prompt_bytes=ask.prompt_bytes,
                overhead_tokens=OVERHEAD_TOKENS,
                max_tokens=ask.max_tokens,
                least_tokens=LEAST_TOKENS if instead_of is None else ask.max_tokens,
                input_price=ask.input_price,
                output_price=ask.output_price,
                limits=self.limits,
                instead_of=instead_of,
            )
        )
        if reserved.over is not None:
            metrics.over_budget[reserved.over] += 1
            _log.info("over_budget", scope=reserved.over, session_id=live.session_id, turn_id=turn_id)
            self._keeps_out(reserved.over, reserved.resets_at)
            raise OverBudget(reserved.over, reserved.resets_at)
        ask.granted = reserved.granted
        return reserved.max_tokens

    async def _asked(self, ask: Ask) -> ledger.Reserved:
        """Ask until it is answered; when the outcome is unknown, again under the same id."""
        for attempt in range(_ATTEMPTS):
            try:
                return await ledger.reserve(self._database, ask)
            except (*CONNECTION_TROUBLE, *LOCKED) as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                _log.warning("reserve_retry", error=error, session_id=ask.session_id)
            await asyncio.sleep(_RETRY_SECONDS * 2**attempt)
        raise AssertionError("the loop returns or raises")

    # --- in the background ---

    async def tend(self) -> None:
        """Charge calls that nobody will close, take back what dead machines drew, tell how the caps stand."""
        while await ledger.charge_orphan(self._database) is not None:
            metrics.orphans_charged += 1
        use = await ledger.tend_global(self._database)
        metrics.budget = _gauges(use, self._limits)
        self._tell(use)

    def _keeps_out(self, scope: str, resets_at: dt.datetime | None) -> None:
        """Log once until its reset that a global cap keeps users out: it may do so below 100 %."""
        if scope.startswith("global_") and self._refusing.get(scope) != resets_at:
            self._refusing[scope] = resets_at
            _log.error("global_budget_refuses", scope=scope, resets_at=str(resets_at))

    def _tell(self, use: GlobalUse) -> None:
        """Log once when a global cap is used up to a level."""
        used = {
            "global_day": (use.day_spent + use.day_reserved, self._limits.global_day),
            "global_month": (use.month_spent + use.month_reserved, self._limits.global_month),
        }
        for scope, (micros, cap) in used.items():
            percent = micros * 100 // cap
            level = max((level for level in _LEVELS if percent >= level), default=0)
            if level > self._told.get(scope, 0):
                log = _log.error if level == 100 else _log.warning
                log("global_budget", scope=scope, percent=percent, usd=micros / 1e6, cap_usd=cap / 1e6)
            self._told[scope] = level


class _Call:
    """A model call of this turn that is reserved, or about to be."""

    __slots__ = ("granted", "id", "input_price", "max_tokens", "output_price", "prompt_bytes")

    def __init__(self, request: StepRequest) -> None:
        self.id = uuid4()
        self.granted = 0
        self.max_tokens = request.max_tokens
        self.prompt_bytes = _size(request)
        self.input_price, self.output_price = models()[request.model].dearest(
            self.prompt_bytes + OVERHEAD_TOKENS
        )


_Reserve: TypeAlias = Callable[[_Call, UUID | None], Awaitable[int]]


class TurnAccount:
    """The calls of one turn: at most one is open at a time, and the next settle closes it."""

    def __init__(self, reserve: _Reserve) -> None:
        self._reserve = reserve
        self._open: _Call | None = None
        self._request: StepRequest | None = None
        self._done: StepDone | None = None
        self.shortened = False
        """The last answer was given less room than its agent's, because a budget is nearly used up."""

    async def reserve(self, request: StepRequest) -> StepRequest:
        """Reserve a call; return the request to make, perhaps with less room for the answer.

        Raises OverBudget, LeaseLost.
        """
        self._done = None
        if request.model not in models():
            return request  # which the engine refuses
        call = _Call(request)
        # From here on: who is cancelled while the answer is on its way may have reserved, and must close it.
        self._open, self._request = call, request
        try:
            room = await self._reserve(call, None)
        except OverBudget:
            self._open = None
            raise
        self.shortened = room < request.max_tokens
        self._request = msgspec.structs.replace(request, max_tokens=room, again=self._again)
        return self._request

    async def _again(self) -> None:
        """Charge the attempt that failed as estimated, and reserve the next one: it may be billed as well."""
        failed, request = self._open, self._request
        assert failed is not None
        assert request is not None
        call = _Call(request)
        # Whatever comes of it: what failed is charged by this, or by the sweep.
        self._open = None
        await self._reserve(call, failed.id)
        self._open = call

    def ended(self, done: StepDone) -> None:
        """Note that the open call ended well."""
        self._done = done

    def close(self) -> CallEnd | None:
        """Return how the open call ended, to be settled with its step; None if there is none."""
        call = self._open
        if call is None or self._request is None:
            return None
        done, exposure = self._done, self._request.exposure
        if done is not None:
            self._check(call, done.cost_usd_micros)
            return CallEnd(
                call_id=call.id,
                state="settled",
                charge=done.cost_usd_micros,
                prompt_bytes=call.prompt_bytes,
                request_id=done.request_id,
            )
        if exposure.unbilled:
            return CallEnd(call_id=call.id, state="released")
        charge = exposure.at_most_usd_micros
        return CallEnd(call_id=call.id, state="estimated", charge=charge)

    def closed(self, end: CallEnd | None) -> None:
        """Note that what `close` returned is settled."""
        if end is not None and self._open is not None and end.call_id == self._open.id:
            metrics.ledger_calls[end.state] += 1
            self._open = None

    def _check(self, call: _Call, cost: int) -> None:
        """Note a call that came to more than its worst case: the bound of its prompt was none."""
        if cost > call.granted:
            metrics.over_reserved += 1
            _log.error("over_reserved", call_id=call.id, reserved=call.granted, cost=cost)


def refuse(scope: str) -> BudgetExceeded:
    """Return the error for a message that a used-up budget keeps out."""
    assert scope in ledger.SCOPES
    metrics.over_budget[scope] += 1
    until = ledger.resets_at(scope, dt.datetime.now(dt.UTC))  # pyright: ignore[reportArgumentType] - as asserted
    return BudgetExceeded(
        "This budget is used up until it is renewed.",
        members={"scope": scope, "left_usd_micros": 0, "resets_at": until},
    )


class _Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the ledger is told of an agent: `over_budget` in 0009_ledger."""

    day: int | None = None
    prompt: int
    """Bytes of system prompt and tools."""
    input: Decimal
    least: int
    """Micro-dollars of the shortest answer and of what the provider adds to the prompt."""


def _text(limits: Limits, agents: Mapping[str, Agent], tools: Mapping[str, Tool]) -> str:
    """Return the limits as the ledger's functions read them."""
    known = {agent.name: _known(freeze(agent, tools), agent) for agent in agents.values()}
    return msgspec.json.encode({**msgspec.structs.asdict(limits), "agents": known}).decode()


def _known(frozen: FrozenAgent, agent: Agent) -> _Known:
    day = agent.budget.usd_micros_per_user_day
    prompt = len(frozen.system.encode()) + len(msgspec.json.encode(frozen.offered()))
    if agent.model not in models():
        return _Known(day=day, prompt=prompt, input=Decimal(0), least=1)
    price, output = models()[agent.model].dearest(0)
    least = round(OVERHEAD_TOKENS * price + LEAST_TOKENS * output)
    return _Known(day=day, prompt=prompt, input=price, least=least)


def _size(request: StepRequest) -> int:
    """Return the bytes of what is counted as prompt."""
    messages = sum(len(bytes(message.content)) for message in request.messages)
    return len(request.system.encode()) + len(msgspec.json.encode(request.tools)) + messages


def _gauges(use: GlobalUse, limits: Limits) -> dict[tuple[str, str], int]:
    day, month = (use.day_spent, use.day_reserved), (use.month_spent, use.month_reserved)
    return {
        (scope, kind): value
        for scope, (spent, reserved), cap in (
            ("global_day", day, limits.global_day),
            ("global_month", month, limits.global_month),
        )
        for kind, value in (("spent", spent), ("reserved", reserved), ("left", cap - spent - reserved))
    }
