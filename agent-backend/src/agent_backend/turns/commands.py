"""What users ask for: sessions, turns, cancelling."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from uuid import UUID

import msgspec

from agent_backend.consents import REQUIRED, Purpose
from agent_backend.db import consents as consents_store
from agent_backend.db import sessions as store
from agent_backend.db import tool_calls
from agent_backend.db.ledger import SCOPES
from agent_backend.db.pool import Database
from agent_backend.errors import Conflict, NotFound, TooManyRequests
from agent_backend.sessions import CallStatus, OnBusy
from agent_backend.telemetry import note_first
from agent_backend.turns import safety
from agent_backend.turns.consent import Consents
from agent_backend.turns.fanout import Hub
from agent_backend.turns.notifier import Notifier
from agent_backend.turns.runner import Runner
from agent_backend.turns.spending import Spending, refuse
from agent_backend.turns.turn import run_started
from agent_backend.turns.versions import AgentVersions, DeviceTool

MAX_QUEUE = 16
"""Unfinished turns a session may have."""


class Commands:
    """Carries out requests.

    `dead` tells which machines are known to be gone; `sweep_soon` has this machine look for work at once;
    `max_user_turns` bounds a user's unfinished turns over all sessions and machines; None is no bound.
    """

    def __init__(
        self,
        *,
        database: Database,
        incarnation: UUID,
        hub: Hub,
        runner: Runner,
        notifier: Notifier,
        versions: AgentVersions,
        consents: Consents,
        admit: Callable[[UUID], Awaitable[None]],
        dead: Callable[[], list[UUID]],
        sweep_soon: Callable[[], None],
        spending: Spending,
        max_user_turns: int | None = None,
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._hub = hub
        self._runner = runner
        self._notifier = notifier
        self._versions = versions
        self._consents = consents
        self._admit = admit
        self._dead = dead
        self._sweep_soon = sweep_soon
        self._spending = spending
        self._max_user_turns = max_user_turns

    async def put_session(
        self,
        user_id: UUID,
        session_id: UUID,
        *,
        agent: str,
        title: str | None,
        device_tools: list[DeviceTool] | None = None,
    ) -> store.PutSession:
        """Make a session, or find it again when the same is sent. Raises NotFound, Conflict.

        `device_tools` are frozen with it; the agent must allow them, and their names must be free.
        """
        version = self._versions.with_device_tools(agent, device_tools or [])
        if version is None:
            raise NotFound(f"There is no agent named {agent!r}.")
        put = await store.put(
            self._database,
            user_id,
            session_id,
            agent=agent,
            version=version[0],
            frozen=version[1],
            title=title,
            body_hash=_hash(["session", agent, title, *([_told(device_tools)] if device_tools else [])]),
        )
        if put is None:
            raise NotFound("There is no such session.")
        if put.status == "conflict":
            raise Conflict("A different session stands under this id.")
        return put

    async def put_turn(
        self,
        user_id: UUID,
        session_id: UUID,
        turn_id: UUID,
        *,
        text: str,
        on_busy: OnBusy | None,
        message_id: str | None = None,
    ) -> store.Accepted:
        """Accept a user message; once this returns it will be answered, whatever happens to this machine.

        Raises NotFound, Conflict (a different turn under this id; `reject` while busy), TooManyRequests,
        ConsentRequired, BudgetExceeded, and Forbidden for a user who is too young or may be (`turns/age.py`).
        """
        await self._admit(user_id)
        content = msgspec.json.encode([{"type": "text", "text": text}]).decode()
        own_id = message_id or str(turn_id)
        # Help does not wait in a queue behind a running turn.
        urgent = await safety.flag_in(text, "en") is not None
        asked = time.monotonic()
        with self._claiming(session_id) as live:
            accepted = await store.accept(
                self._database,
                user_id=user_id,
                session_id=session_id,
                turn_id=turn_id,
                body_hash=_hash(["turn", text, on_busy]),
                message_id=own_id,
                content=content,
                on_busy="interrupt" if urgent else on_busy,
                run_started=run_started(session_id, turn_id, own_id, text),
                incarnation=self._incarnation,
                live=live,
                dead=self._dead(),
                max_queue=MAX_QUEUE,
                consents=self._consents.required("model_call"),
                limits=self._spending.limits,
                max_user_turns=self._max_user_turns,
            )
            if accepted.status == "created":
                self._consents.note_given(user_id, "model_call", asked)
            if accepted.claim is not None:
                self._runner.begin(accepted.claim)
                note_first("first_turn")
        if accepted.status == "consent_required":
            raise self._consents.error(accepted.missing)
        _raise_for(accepted.status)
        if accepted.claim is None and accepted.status == "created":
            await self._tell_owner(session_id, accepted.owner)
        return accepted

    async def cancel(self, user_id: UUID, session_id: UUID, turn_id: UUID) -> str:
        """Ask for a turn's end and return its state; a finished turn stays as it is. Raises NotFound."""
        with self._claiming(session_id) as live:
            cancelled = await store.cancel(
                self._database,
                user_id=user_id,
                session_id=session_id,
                turn_id=turn_id,
                incarnation=self._incarnation,
                live=live,
                dead=self._dead(),
            )
            if cancelled.claim is not None:
                self._runner.begin(cancelled.claim)
        if cancelled.status == "not_found" or cancelled.state is None:
            raise NotFound("There is no such turn.")
        if cancelled.status == "requested" and cancelled.claim is None:
            await self._tell_owner(session_id, cancelled.owner)
        return cancelled.state

    async def claim_call(self, user_id: UUID, session_id: UUID, call_id: str, device: str) -> None:
        """Let a device say that it, and no other, will act on a call. Raises NotFound, Conflict."""
        match await tool_calls.claim_call(self._database, user_id, session_id, call_id, device):
            case "not_found":
                raise NotFound("There is no such tool call.")
            case "not_claimable":
                raise Conflict("This call waits for the user's yes; no device runs it.")
            case "conflict":
                raise Conflict("Another device has claimed this call, or it is over.")
            case _:
                pass

    async def put_result(
        self,
        user_id: UUID,
        session_id: UUID,
        call_id: str,
        *,
        status: CallStatus,
        content: str | None,
        device: str | None,
    ) -> None:
        """Take the answer to a call; the last one its turn waits for wakes the turn.

        Raises NotFound, Conflict (answered otherwise, expired, or another device's to answer),
        ConsentRequired.
        """
        with self._claiming(session_id) as live:
            answered = await tool_calls.answer(
                self._database,
                user_id=user_id,
                session_id=session_id,
                call_id=call_id,
                status=status,
                content=content,
                body_hash=_hash(["result", status, content]),
                device=device,
                incarnation=self._incarnation,
                live=live,
                dead=self._dead(),
                consents=self._consents.required("model_call"),
            )
            if answered.claim is not None:
                self._runner.begin(answered.claim)
        if answered.status == "consent_required":
            raise self._consents.error(answered.missing)
        _raise_for_answer(answered.status)
        if answered.woken and answered.claim is None:
            self._notifier.work_for(session_id)

    async def withdraw_consent(self, user_id: UUID, purpose: Purpose) -> None:
        """Take a consent back and stop what needs it, wherever it runs; return when it has stopped."""
        sessions = await consents_store.withdraw(
            self._database, user_id, purpose, ends_turns=purpose in REQUIRED["model_call"]
        )
        self._consents.forget(user_id)
        if not sessions:
            return
        # Parked turns, which nobody owns, are due with this.
        self._sweep_soon()

        async def tell() -> None:
            for session_id in sessions:
                self._notifier.work_for(session_id)
            await self._runner.cancel_requested(sessions)

        await tell()
        await self._consents.until_stopped(user_id, tell)

    async def _tell_owner(self, session_id: UUID, owner: UUID | None) -> None:
        """Let the owner look whether its running turn is to stop; queued turns it finds by itself."""
        if owner == self._incarnation:
            await self._runner.cancel_requested([session_id])
        else:
            self._notifier.work_for(session_id)

    @contextmanager
    def _claiming(self, session_id: UUID) -> Generator[bool]:
        """Keep the sweep, and requests beside this one, from taking what this one may be taking.

        Yields whether the session is this machine's already, or may be any moment.
        """
        live = session_id in self._hub.live or session_id in self._hub.claiming
        with self._hub.claim_under_way([session_id]):
            yield live


def _hash(parts: list[str | None]) -> bytes:
    """Return the hash by which a request sent again is recognised; `parts` are its normalised body."""
    return hashlib.sha256(msgspec.json.encode(parts)).digest()


def _told(tools: list[DeviceTool]) -> str:
    return msgspec.json.encode(tools, order="deterministic").decode()


def _raise_for_answer(status: str) -> None:
    match status:
        case "not_found":
            raise NotFound("There is no such tool call.")
        case "conflict":
            raise Conflict("This call has another answer already.")
        case "expired":
            raise Conflict("This call has expired.")
        case "not_claimed":
            raise Conflict("This call is answered by the device that has claimed it.")
        case _:
            pass


def _raise_for(status: str) -> None:
    match status:
        case "not_found":
            raise NotFound("There is no such session.")
        case "conflict":
            raise Conflict("A different turn stands under this id.")
        case "busy":
            raise Conflict("A turn is running, and on_busy is 'reject'.")
        case "queue_full":
            raise TooManyRequests("Too many turns are waiting in this session.", retry_after=5, limit="queue")
        case "too_many_turns":
            raise TooManyRequests(
                "Too many of your turns are not finished yet.", retry_after=5, limit="concurrent_turns"
            )
        case scope if scope in SCOPES:
            raise refuse(scope)
        case _:
            pass
