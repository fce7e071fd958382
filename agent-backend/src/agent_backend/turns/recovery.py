"""Staying alive and taking over: heartbeat, watch, sweep, LISTEN.

A machine's lease is its row in `machines`. Another machine's sessions are taken only after its heartbeat was
*watched* standing still for one lease time: a database outage, which stops everybody's heartbeat alike, makes
nobody steal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from agent_backend.db import leases
from agent_backend.db.pool import Database
from agent_backend.telemetry import Log
from agent_backend.turns.fanout import Hub
from agent_backend.turns.notifier import CHANNEL, Notifier, read_notice
from agent_backend.turns.runner import Runner

_log = Log("recovery")

_TROUBLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
_CLAIM_LIMIT = 50
_BURY_AFTER = 10
"""Lease times after which a dead machine's row is removed."""


class Watch:
    """Decides which machines are dead, from their heartbeats as this machine sees them; pure.

    Dead is who is expired by the database's clock and whose lease has stood still for one lease time by our
    monotonic clock, while we looked: a time without sightings (we were frozen, or the database was away and
    nobody could beat) says nothing of anybody, and the watch starts anew after it.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._looked = float("-inf")
        self._seen: dict[UUID, tuple[Any, float]] = {}

    def observe(self, beats: list[leases.Heartbeat], now: float) -> list[UUID]:
        """Take note of a sighting at `now` (monotonic seconds) and return the dead."""
        dead: list[UUID] = []
        # Sightings come with our own beats, three in a lease time.
        if now - self._looked > self._lease / 2:
            self._seen = {}
        self._looked = now
        seen: dict[UUID, tuple[Any, float]] = {}
        for beat in beats:
            value, since = self._seen.get(beat.incarnation, (None, now))
            if value != beat.alive_until:
                since = now
            seen[beat.incarnation] = (beat.alive_until, since)
            if beat.alive_until < beat.database_time and now - since >= self._lease:
                dead.append(beat.incarnation)
        self._seen = seen
        return dead

    def long_dead(self, now: float) -> list[UUID]:
        """Return machines that have stood still so long that their row may go."""
        return [
            incarnation
            for incarnation, (_, since) in self._seen.items()
            if now - since >= _BURY_AFTER * self._lease
        ]


class Recovery:
    """The machine's pulse. `dead` is what claims may name as gone."""

    def __init__(
        self,
        *,
        database: Database,
        machine_id: str,
        incarnation: UUID,
        lease: float,
        hub: Hub,
        runner: Runner,
        notifier: Notifier,
    ) -> None:
        self._database = database
        self._machine_id = machine_id
        self._incarnation = incarnation
        self._lease = lease
        self._hub = hub
        self._runner = runner
        self._notifier = notifier
        self._watch = Watch(lease)
        self._sweep_now = asyncio.Event()
        self.dead: list[UUID] = []
        self.superseded = False

    async def register(self) -> None:
        """Announce this machine; its older incarnation's sessions become claimable with that."""
        async with self._database.pool.acquire() as connection:
            await leases.register(connection, self._machine_id, self._incarnation, self._lease)

    async def run(self) -> None:
        """Beat, listen and sweep until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat_forever())
            group.create_task(self._listen_forever())
            group.create_task(self._sweep_forever())

    # --- heartbeat ---

    async def _beat_forever(self) -> None:
        """Beat on a connection of its own: a busy pool must not cost the lease."""
        while not self.superseded:
            try:
                connection = await self._database.connect()
                try:
                    while not self.superseded:
                        await self._beat(connection)
                        await asyncio.sleep(self._lease / 3)
                finally:
                    # The connection may be what is broken, so its closing is not waited for.
                    connection.terminate()
            except _TROUBLE as error:
                _log.warning("heartbeat_failed", error=error)
                await asyncio.sleep(min(1.0, self._lease / 6))

    async def _beat(self, connection: asyncpg.Connection) -> None:
        beats = await leases.beat(connection, self._machine_id, self._incarnation, self._lease)
        own = next((beat for beat in beats if beat.machine_id == self._machine_id), None)
        if own is None:
            # Others have buried us, so their claims may have ended our epochs; the fences decide which.
            _log.warning("lease_was_buried", machine=self._machine_id)
            await leases.register(connection, self._machine_id, self._incarnation, self._lease)
        elif own.incarnation != self._incarnation:
            _log.error("superseded", machine=self._machine_id)
            self.superseded = True
            self._runner.lost_all()
            return
        now = time.monotonic()
        others = [beat for beat in beats if beat.incarnation != self._incarnation]
        self.dead = self._watch.observe(others, now)
        self._notifier.alone = not [beat for beat in others if beat.alive_until > beat.database_time]
        if self.dead:
            self._sweep_now.set()
        for incarnation in self._watch.long_dead(now):
            await leases.remove(connection, incarnation, only_if_expired=True)

    # --- listening ---

    async def _listen_forever(self) -> None:
        while True:
            try:
                connection = await self._database.connect()
                closed = asyncio.Event()
                connection.add_termination_listener(partial(_set, closed))
                try:
                    await connection.add_listener(CHANNEL, self._heard)
                    await self._notifier.hello()
                    # What was told before we listened is lost to us: look at everything once.
                    self._hub.wake_all_remote()
                    self._sweep_now.set()
                    await closed.wait()
                finally:
                    connection.terminate()
            except _TROUBLE as error:
                _log.warning("listen_failed", error=error)
            await asyncio.sleep(min(1.0, self._lease / 6))

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        notice = read_notice(str(payload))
        if notice is None or notice.sender == str(self._incarnation):
            return
        self._notifier.alone = False
        for session_id in notice.log:
            self._hub.wake_remote(session_id)
        if notice.work:
            self._sweep_now.set()

    # --- sweeping ---

    async def _sweep_forever(self) -> None:
        interval = min(5.0, self._lease / 3)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._sweep_now.wait()
            self._sweep_now.clear()
            try:
                if not self.superseded:
                    await self.sweep()
            except _TROUBLE as error:
                _log.warning("sweep_failed", error=error)
            # A superseded process may still have readers, and its successor believes itself alone.
            self._hub.wake_all_remote()

    async def sweep(self) -> None:
        """Take sessions whose work nobody does, let go of those taken from here, pass on cancel requests."""
        await self._take_up()
        if self._hub.live:
            await self._runner.let_go()
            await self._runner.cancel_requested(list(self._hub.live))

    async def _take_up(self) -> None:
        """Take sessions that have work and no living owner.

        What this machine runs is asked for again after the database was: requests accept turns meanwhile.
        """
        hub = self._hub
        found = await leases.claimable(self._database, self._incarnation, self.dead, hub.busy, _CLAIM_LIMIT)
        if len(found) == _CLAIM_LIMIT:
            self._sweep_now.set()
        busy = set(hub.busy)
        free = [(session_id, epoch) for session_id, epoch in found if session_id not in busy]
        if not free:
            return
        # Requests that come before the answer must know that these sessions may be ours.
        with hub.claim_under_way(session_id for session_id, _ in free):
            for claim in await leases.claim(self._database, self._incarnation, self.dead, free):
                _log.info(
                    "session_taken", session_id=claim.session_id, epoch=claim.epoch, state=claim.turn_state
                )
                self._runner.begin(claim)


def _set(event: asyncio.Event, _connection: object) -> None:
    event.set()
