"""Settling: the one way events other than STARTs and deltas come to be.

A settle takes over the session's unpersisted deltas, writes them with the step's messages and closing events
in one call, and publishes the closing events only when that call has been answered. An attempt whose outcome
is unknown is repeated under the same positions, which the database recognises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from uuid import UUID

import asyncpg

from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.db.ledger import CallEnd
from agent_backend.db.pool import Database
from agent_backend.db.tool_calls import ParkedCall
from agent_backend.errors import LeaseLost, ToolFailed
from agent_backend.sessions import FinalState
from agent_backend.telemetry import Log
from agent_backend.tools.base import Effect
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED, Committer
from agent_backend.turns.fanout import LiveSession, Numbered
from agent_backend.turns.notifier import Notifier
from agent_backend.turns.parking import state_for

T = TypeVar("T")

_log = Log("settling")


class Settler:
    """Settles steps of live sessions. `patience`: seconds an unreachable database is waited for."""

    def __init__(
        self, database: Database, incarnation: UUID, committer: Committer, notifier: Notifier, patience: float
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._committer = committer
        self._notifier = notifier
        self._patience = patience

    async def settle(
        self,
        live: LiveSession,
        turn_id: UUID,
        events: list[bytes],
        *,
        messages: list[store.NewMessage] | None = None,
        usage: store.StepUsage = store.NO_USAGE,
        final_state: FinalState | None = None,
        error_code: str | None = None,
        effect: Effect | None = None,
        call: CallEnd | None = None,
    ) -> store.Settled:
        """Settle one step; `events` (at least one) are published afterwards.

        Raises LeaseLost when the session is no longer ours, or the database stayed away for too long, and
        ToolFailed when `effect` refuses; then nothing of this is written.
        """
        with self._one_write(live):
            pending = await self._committer.take_over(live)
            numbered = live.number(events)
            step = store.Settlement(
                session_id=live.session_id,
                incarnation=self._incarnation,
                epoch=live.epoch,
                turn_id=turn_id,
                messages=messages or [],
                first=(pending or numbered)[0].n,
                last=numbered[-1].n,
                events=b"\n".join([event for _, event in (*pending, *numbered)]),
                final_state=final_state,
                error_code=error_code,
                usage=usage,
                call=call,
            )
            settled = await self._send(live, step, effect)
        self._publish(live, len(pending), numbered)
        return settled

    @contextmanager
    def _one_write(self, live: LiveSession) -> Generator[None]:
        """Surround a session's write from taking over its pending events to the answer."""
        before = live.next_n
        try:
            yield
        except (asyncpg.PostgresError, ToolFailed):
            # Refused for certain, so the numbers were not used and the next settle may have them.
            live.next_n = before
            raise
        except asyncio.CancelledError:
            # Carried out or not, nobody here will know: what is pending must not be written beside it.
            live.fence()
            raise
        finally:
            self._committer.settled(live)

    async def park(
        self, live: LiveSession, turn_id: UUID, events: list[bytes], calls: list[ParkedCall], seconds: float
    ) -> bool:
        """Settle `events` and give the session back until the calls are answered or `seconds` are over.

        Returns False, and has done nothing, when the turn was asked to stop. Raises LeaseLost as `settle`.
        """
        before = live.next_n
        with self._one_write(live):
            pending = await self._committer.take_over(live)
            numbered = live.number(events)
            parking = tool_calls.Parking(
                session_id=live.session_id,
                incarnation=self._incarnation,
                epoch=live.epoch,
                turn_id=turn_id,
                first=(pending or numbered)[0].n,
                last=numbered[-1].n,
                events=b"\n".join([event for _, event in (*pending, *numbered)]),
                state=state_for(calls),
                timeout=seconds,
                calls=calls,
            )
            parked = await self._repeated(live, partial(tool_calls.park, self._database, parking))
        if parked:
            self._publish(live, len(pending), numbered)
        else:
            live.next_n = before
        return parked

    def _publish(self, live: LiveSession, persisted: int, numbered: list[Numbered]) -> None:
        del live.pending[:persisted]
        live.publish_settled(numbered)
        self._notifier.log_grew(live.session_id)

    async def _send(self, live: LiveSession, step: store.Settlement, effect: Effect | None) -> store.Settled:
        if effect is None:
            return await self._repeated(live, partial(store.settle, self._database, step))
        return await self._repeated(live, partial(self._with_effect, step, effect))

    async def _repeated(self, live: LiveSession, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it is answered; the database knows what it has done already."""
        give_up_at = time.monotonic() + self._patience
        delay = 0.05
        unknown = False
        while True:
            if live.fenced:
                raise LeaseLost
            try:
                return await attempt()
            except (*CONNECTION_TROUBLE, *LOCKED) as error:
                _log.warning("settle_retry", error=error, session_id=live.session_id)
                unknown = unknown or not isinstance(error, LOCKED)
                if time.monotonic() > give_up_at:
                    raise LeaseLost from error
            except asyncpg.PostgresError as error:
                if unknown:
                    # An attempt before this one may have been committed: only the log knows now.
                    _log.error("settle_unclear", error=error, session_id=live.session_id)
                    raise LeaseLost from error
                raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _with_effect(self, step: store.Settlement, effect: Effect) -> store.Settled:
        """Commit a tool's effect with its result; a repetition finds the result settled and does neither.

        Raises ToolFailed when the effect refuses: then neither is written.
        """
        async with self._database.pool.acquire() as connection, connection.transaction():
            settled = await store.settle(connection, step)
            if not settled.again:
                await effect(connection)
            return settled
