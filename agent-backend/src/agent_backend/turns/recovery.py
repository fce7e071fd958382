"""Staying alive and taking over: heartbeat, watch, sweep, LISTEN.

A machine's lease is its row in `machines`. Another machine's sessions are taken only after its heartbeat was
*watched* standing still for one lease time: a database outage, which stops everybody's heartbeat alike, makes
nobody steal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg

from agent_backend.db import leases
from agent_backend.db.pool import Database
from agent_backend.telemetry import Log, metrics
from agent_backend.turns.fanout import Hub
from agent_backend.turns.notifier import CHANNEL, Notifier, read_notice
from agent_backend.turns.runner import Runner
from agent_backend.turns.watchdog import Clocks, watch

_log = Log("recovery")

_TROUBLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
_CLAIM_LIMIT = 50
_RECONNECT_SECONDS: Final = 0.05
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
        self._beat_now = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._own_connections: set[asyncpg.Connection] = set()
        # A busy machine is late by less; a thaw that stays below it has cost neither lease nor connections.
        self._clocks = Clocks(max(2.0, lease / 3))
        self.dead: list[UUID] = []
        self.superseded = False

    async def register(self) -> None:
        """Announce this machine; its older incarnation's sessions become claimable with that."""
        async with self._database.pool.acquire() as connection:
            await leases.register(connection, self._machine_id, self._incarnation, self._lease)

    async def run(self) -> None:
        """Beat, listen, sweep and watch the clocks until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(self._clocks, self._thawed))
            group.create_task(self._beat_forever())
            group.create_task(self._listen_forever())
            group.create_task(self._sweep_forever())

    # --- standing still ---

    def _thawed(self, seconds: float) -> None:
        """Trust no connection after a freeze, ask at once whether the lease is still ours, look for work."""
        _log.warning("thawed", seconds=round(seconds, 1), sessions=len(self._hub.live))
        metrics.thaws += 1
        self._clocks.forget()
        self._runner.thawed()
        self._database.renew()
        self.reconnect()

    def reconnect(self) -> None:
        """Open the connections beside the pool anew, beat and sweep: now."""
        for connection in list(self._own_connections):
            connection.terminate()
        self._beat_now.set()
        self._sweep_now.set()

    @property
    def resting(self) -> bool:
        """Whether this machine has let go of the database, to be suspended."""
        return not self._awake.is_set()

    @property
    def awake(self) -> asyncio.Event:
        """Set unless this machine rests: background work waits for it before it asks the database."""
        return self._awake

    def rest(self) -> None:
        """Let go of the database: what is connected now would be dead after a suspend."""
        self._awake.clear()
        self._database.renew()
        for connection in list(self._own_connections):
            connection.terminate()

    def wake(self) -> None:
        """End what `rest` began."""
        self._awake.set()
        self._clocks.forget()
        # The pool may have reconnected before the machine stood still.
        self._database.renew()
        self.reconnect()

    # --- heartbeat ---

    async def _beat_forever(self) -> None:
        """Beat on a connection of its own: a busy pool must not cost the lease."""
        while not self.superseded:
            try:
                async with self._own_connection() as connection:
                    while not self.superseded:
                        self._beat_now.clear()
                        # A connection that a freeze has killed says nothing for as long as it is listened to.
                        async with asyncio.timeout(self._lease / 3):
                            await self._beat(connection)
                        await _first_of(self._beat_now, self._lease / 3)
            except _TROUBLE as error:
                if self.resting:
                    continue
                _log.warning("heartbeat_failed", error=error)
                await asyncio.sleep(min(1.0, self._lease / 6))

    async def _beat(self, connection: asyncpg.Connection) -> None:
        beats = await leases.beat(connection, self._machine_id, self._incarnation, self._lease)
        own = next((beat for beat in beats if beat.machine_id == self._machine_id), None)
        if own is None:
            # Others have buried us, so their claims may have ended our epochs; the fences decide which.
            _log.warning("lease_was_buried", machine=self._machine_id)
            await leases.register(connection, self._machine_id, self._incarnation, self._lease)
            self._sweep_now.set()
        elif own.incarnation != self._incarnation:
            _log.error("superseded", machine=self._machine_id)
            self.superseded = True
            self._runner.lost_all()
            return
        now = time.monotonic()
        apart = self._clocks.compare(beats[0].database_time.timestamp(), now) if beats else 0.0
        if apart:
            self._thawed(apart)
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
                async with self._own_connection() as connection:
                    closed = asyncio.Event()
                    connection.add_termination_listener(partial(_set, closed))
                    await connection.add_listener(CHANNEL, self._heard)
                    await self._notifier.hello()
                    # What was told before we listened is lost to us: look at everything once.
                    self._hub.wake_all_remote()
                    self._sweep_now.set()
                    await closed.wait()
                await asyncio.sleep(_RECONNECT_SECONDS)
            except _TROUBLE as error:
                _log.warning("listen_failed", error=error)
                await asyncio.sleep(min(1.0, self._lease / 6))

    @contextlib.asynccontextmanager
    async def _own_connection(self) -> AsyncGenerator[asyncpg.Connection]:
        """Open a connection beside the pool, once this machine does not rest."""
        await self._awake.wait()
        connection = await self._database.connect()
        self._own_connections.add(connection)
        try:
            yield connection
        finally:
            self._own_connections.discard(connection)
            # The connection may be what is broken, so its closing is not waited for.
            connection.terminate()

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
            await _first_of(self._sweep_now, interval)
            self._sweep_now.clear()
            await self._awake.wait()
            try:
                if not self.superseded:
                    await self.sweep()
            except _TROUBLE as error:
                _log.warning("sweep_failed", error=error)
            # A superseded process may still have readers, and its successor believes itself alone.
            self._hub.wake_all_remote()

    def sweep_soon(self) -> None:
        """Look for work now instead of at the next turn of the clock."""
        self._sweep_now.set()

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


async def _first_of(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not for longer than this."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
