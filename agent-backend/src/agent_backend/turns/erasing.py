"""Erasing a user: the tombstone first, then everything in batches, then the account with the token issuer.

Whatever breaks on the way, the tombstone stands: the user's writes are refused, and any machine goes on from
what is left. So an erasure converges, and asking for it again answers the same receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol
from uuid import UUID

from agent_backend.db import erasures
from agent_backend.db.erasures import Erasure
from agent_backend.db.pool import Database
from agent_backend.supabase import AccountsUnavailable
from agent_backend.telemetry import Log, metrics
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED

_log = Log("erasing")

_TROUBLE = (*CONNECTION_TROUBLE, *LOCKED)
_ASKED_SECONDS = 20.0
"""What a request waits for; the rest is done behind it."""
_TRIES = 5
_AGAIN_SECONDS = 0.2


class Accounts(Protocol):
    """Where users' accounts are. `delete` may be asked again; it raises AccountsUnavailable."""

    async def delete(self, user_id: UUID) -> Literal["deleted", "absent"]:
        """Delete an account; `absent`: it is not there (any more)."""
        ...


class Eraser:
    """Carries out erasures. `gone` is told of sessions that no longer exist, `forget` of users."""

    def __init__(
        self,
        database: Database,
        accounts: Accounts | None,
        *,
        gone: Callable[[list[UUID]], None],
        forget: Callable[[UUID], None],
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._gone = gone
        self._forget = forget
        self._running: dict[UUID, asyncio.Task[None]] = {}

    async def erase(self, user_id: UUID) -> Erasure:
        """Erase a user, or go on with it, and return how far it came; incomplete is gone on with behind.

        Raises what the database raises, but only before anything was recorded.
        """
        begun = await erasures.begin(self._database, user_id, account=self._accounts is not None)
        self._forget(user_id)
        if begun.completed_at is not None:
            return begun
        _log.info("erasure_asked", receipt=begun.receipt)
        task = self._start(begun)
        await asyncio.wait([task], timeout=_ASKED_SECONDS)
        try:
            return await erasures.read(self._database, begun.receipt)
        except _TROUBLE:
            return begun

    async def resume(self) -> int:
        """Go on with what was left, here or elsewhere; return how many erasures."""
        taken = await erasures.take(self._database)
        tasks = [self._start(each) for each in taken]
        if tasks:
            await asyncio.wait(tasks)
        return len(taken)

    async def stop(self) -> None:
        """End; what is not done is gone on with by whoever comes next."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, erasure: Erasure) -> asyncio.Task[None]:
        task = self._running.get(erasure.receipt)
        if task is None:
            task = asyncio.create_task(self._run(erasure), name=f"erasure {erasure.receipt}")
            self._running[erasure.receipt] = task
            task.add_done_callback(lambda _: self._running.pop(erasure.receipt, None))
        return task

    async def _run(self, erasure: Erasure) -> None:
        try:
            await self._rows(erasure.receipt)
            if erasure.account == "pending" and erasure.user is not None and self._accounts is not None:
                await self._account(erasure.receipt, erasure.user, self._accounts)
        except Exception as error:  # noqa: BLE001 - the work is recorded, and taken up again
            metrics.erasures["put_off"] += 1
            _log.warning("erasure_put_off", error=error, receipt=erasure.receipt)
            return
        done = await erasures.read(self._database, erasure.receipt)
        metrics.erasures["erased"] += 1
        _log.info("erased", receipt=done.receipt, rows=sum(done.counts.values()), account=done.account)

    async def _rows(self, receipt: UUID) -> None:
        """Delete batches until nothing is left; one that met a lock or a broken connection is repeated."""
        failed, done = 0, False
        while not done:
            try:
                sessions, done = await erasures.step(self._database, receipt)
            except _TROUBLE:
                failed += 1
                if failed == _TRIES:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS * failed)
                continue
            failed = 0
            if sessions:
                self._gone(sessions)

    async def _account(self, receipt: UUID, user_id: UUID, accounts: Accounts) -> None:
        try:
            state = await accounts.delete(user_id)
        except AccountsUnavailable as error:
            if error.refused:
                metrics.erasures["key_refused"] += 1
                _log.error("account_key_refused", error=error, receipt=receipt)
            raise
        await erasures.account_erased(self._database, receipt, state)
