"""Running sessions: a claimed session gets a task that runs its turns until the queue is empty."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from uuid import UUID

import asyncpg
import msgspec

from agent_backend.db import leases
from agent_backend.db import sessions as store
from agent_backend.db.leases import Claim, release
from agent_backend.db.pool import Database
from agent_backend.engines.base import Engine
from agent_backend.errors import LeaseLost
from agent_backend.telemetry import Log
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED, Committer
from agent_backend.turns.consent import Consents
from agent_backend.turns.fanout import Hub, LiveSession
from agent_backend.turns.notifier import Notifier
from agent_backend.turns.settling import Settler
from agent_backend.turns.spending import Spending
from agent_backend.turns.toolbox import Toolbox
from agent_backend.turns.turn import SituationOf, TurnRun, run_started
from agent_backend.turns.versions import AgentVersions

_log = Log("runner")

MAX_ATTEMPTS = 5
"""A turn that brought down its owner this often is ended: it may be what brings them down."""
_OLDER_EPOCH_SECONDS = 2.0
_AFTER_THAW_SECONDS = 90.0
"""A connection that a freeze has killed keeps silent until the idle timeout of a model call, and more."""


class Runner:
    """Runs the sessions this machine owns. One per process."""

    def __init__(
        self,
        *,
        database: Database,
        incarnation: UUID,
        hub: Hub,
        committer: Committer,
        notifier: Notifier,
        settler: Settler,
        toolbox: Toolbox,
        versions: AgentVersions,
        engines: Mapping[str, Engine],
        situation_of: SituationOf,
        consents: Consents,
        call_seconds: float,
        spending: Spending,
    ) -> None:
        self._database = database
        self._incarnation = incarnation
        self._hub = hub
        self._committer = committer
        self._notifier = notifier
        self._settler = settler
        self._toolbox = toolbox
        self._versions = versions
        self._engines = engines
        self._situation_of = situation_of
        self._consents = consents
        self._call_seconds = call_seconds
        self._spending = spending
        self._tasks: set[asyncio.Task[None]] = set()
        self._thawed_at = float("-inf")

    def begin(self, claim: Claim) -> None:
        """Take up a session this machine has just claimed."""
        live = LiveSession(claim.session_id, claim.user_id, claim.epoch, claim.next_n, self._committer)
        older = self._hub.live.get(live.session_id)
        if older is None:
            self._hub.add(live)
        live.task = asyncio.create_task(self._run(live, claim, older), name=f"session {claim.session_id}")
        self._tasks.add(live.task)
        live.task.add_done_callback(self._tasks.discard)

    async def _run(self, live: LiveSession, claim: Claim, older: LiveSession | None) -> None:
        if older is not None:
            # It has released the session but perhaps not yet told its readers of the end. Between its going
            # and our coming a request must not believe that nobody here has the session.
            with self._hub.claim_under_way([live.session_id]):
                if older.task is not None:
                    await asyncio.wait([older.task], timeout=_OLDER_EPOCH_SECONDS)
                self._hub.add(live)
        self._notifier.log_grew(live.session_id)
        try:
            await self._turns(live, claim)
        except LeaseLost:
            self.lost(live)
        except Exception as error:  # noqa: BLE001 - whatever broke, the session must become claimable again
            _log.error("session_abandoned", error=error, session_id=live.session_id)
            self.lost(live)
        finally:
            self._hub.remove(live)

    async def _turns(self, live: LiveSession, claim: Claim) -> None:
        following: Claim | None = claim
        while following is not None:
            if following.turn_id is None:
                # Claimed without work; what came meanwhile is returned instead of being released.
                following = await release(
                    self._database, live.session_id, self._incarnation, live.epoch, live.next_n, force=False
                )
            else:
                following = await self._turn(live, following)

    async def _turn(self, live: LiveSession, claim: Claim) -> Claim | None:
        assert claim.turn_id is not None, "checked by the caller"
        live.turn_id = claim.turn_id
        if claim.turn_state == "queued":
            claim = await self._start(live, claim)
        turn_id = live.turn_id
        agent = await self._versions.get(claim.agent_version)
        turn = TurnRun(
            live,
            claim,
            agent=agent,
            engine=self._engines[agent.engine],
            database=self._database,
            settler=self._settler,
            toolbox=self._toolbox,
            situation_of=self._situation_of,
            consents=self._consents,
            restarts=self._recently_thawed,
            call_seconds=self._call_seconds,
            account=self._spending.account(live, turn_id),
        )
        if claim.attempts > MAX_ATTEMPTS:
            return await turn.fail("gave_up", "This turn could not be finished.")
        try:
            return await turn.run()
        except (LeaseLost, *CONNECTION_TROUBLE, *LOCKED):
            # LOCKED: this process was frozen in mid-statement, which says nothing against the turn.
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must end in RUN_ERROR, not in silence
            _log.error("turn_broke", error=error, turn_id=claim.turn_id, session_id=live.session_id)
            return await turn.fail("internal", "Something went wrong on our side.")

    async def _start(self, live: LiveSession, claim: Claim) -> Claim:
        """Begin a turn that had to wait in the queue."""
        assert claim.turn_id is not None, "checked by the caller"
        blocks: list[dict[str, str]] = msgspec.json.decode(claim.content or "[]")
        text = "\n\n".join(block["text"] for block in blocks)
        event = run_started(live.session_id, claim.turn_id, claim.message_id or "", text)
        # Positions follow commit order: nothing of this session may still be on its way to the log.
        try:
            await self._committer.take_over(live)
            numbered = live.number([event])
            begun, cancel = await store.start_turn(
                self._database,
                live.session_id,
                self._incarnation,
                live.epoch,
                claim.turn_id,
                numbered[0].n,
                event,
            )
        finally:
            self._committer.settled(live)
        if not begun:
            raise LeaseLost
        live.publish_settled(numbered)
        self._notifier.log_grew(live.session_id)
        return claim._replace(
            turn_state="running",
            last_message=claim.last_message + 1,
            attempts=claim.attempts + 1,
            cancel_requested=cancel,
        )

    def thawed(self) -> None:
        """Note that this process stood still: model calls that break now were broken by that."""
        self._thawed_at = time.monotonic()

    def _recently_thawed(self) -> bool:
        return time.monotonic() - self._thawed_at < _AFTER_THAW_SECONDS

    # --- ends ---

    def lost(self, live: LiveSession) -> None:
        """Stop publishing for a session that is ours no longer, or that must be taken anew with a marker."""
        if not live.fenced:
            _log.warning("lease_lost", session_id=live.session_id, epoch=live.epoch)
            live.fence()
        self._hub.remove(live)

    async def let_go(self) -> None:
        """Let go of sessions that others took while this machine stood still and nothing was written."""
        held = list(self._hub.live.values())
        taken = await leases.taken(
            self._database, self._incarnation, [(live.session_id, live.epoch) for live in held]
        )
        for live in held:
            if live.session_id in taken:
                self.lost(live)

    def lost_all(self) -> None:
        """Fence everything: this machine's own lease is gone."""
        for live in list(self._hub.live.values()):
            self.lost(live)

    async def cancel_requested(self, session_ids: list[UUID]) -> None:
        """Look up cancel requests for live sessions (made on other machines) and pass them on."""
        for session_id, turn_id in await store.requested_cancels(self._database, session_ids):
            live = self._hub.live.get(session_id)
            if live is not None and live.turn_id == turn_id:
                live.request_cancel(turn_id)

    async def halt(self) -> list[LiveSession]:
        """End all runs at once, and return the sessions they leave in mid-turn."""
        owned = list(self._hub.live.values())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return owned

    async def give_back(self, owned: list[LiveSession]) -> None:
        """Release sessions, in mid-turn too: another machine goes on."""
        for live in owned:
            live.fence()
            try:
                await release(
                    self._database, live.session_id, self._incarnation, live.epoch, live.next_n, force=True
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("release_failed", error=error, session_id=live.session_id)
