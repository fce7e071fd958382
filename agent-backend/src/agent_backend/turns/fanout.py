"""Live sessions of this machine and who listens to them.

A `LiveSession` is a session this machine owns in one epoch: it numbers the events, hands them to local
subscribers at once and keeps what is not persisted yet. Subscribers never wait for the database, and the
runner never waits for a subscriber: who falls too far behind is cut and comes back with a cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from agent_backend.telemetry import metrics

if TYPE_CHECKING:
    from agent_backend.turns.committer import Committer

MAX_BACKLOG = 2_000
"""Events a subscriber may be behind before it is cut; at 20 deltas a second this is over a minute."""


class Numbered(NamedTuple):
    """An event with its number in the epoch of its session."""

    n: int
    event: bytes


class Subscriber:
    """One reader's end: a bounded backlog and a wake-up."""

    __slots__ = ("_backlog", "_finished", "_waiter", "cut")

    def __init__(self) -> None:
        self._backlog: deque[Numbered] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._finished = False
        self.cut = False
        """The reader may have seen what will never be settled, or was too slow: its connection must end."""

    def push(self, events: Iterable[Numbered]) -> None:
        """Hand over events; a reader that is too far behind is cut instead."""
        if self._finished:
            return
        self._backlog.extend(events)
        if len(self._backlog) > MAX_BACKLOG:
            self.cut_off()
        self._wake()

    def cut_off(self) -> None:
        """End at once; what is in the backlog is not delivered."""
        self.cut = True
        self._backlog.clear()
        self.finish()

    def finish(self) -> None:
        """End after the backlog: the session was released, and all of it stands in the log."""
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Numbered]:
        """Wait for events and return all there are; an empty list is the end."""
        while not self._backlog and not self._finished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken = list(self._backlog)
        self._backlog.clear()
        return taken


class Interrupted(Exception):
    """The running step is to stop because the turn was cancelled."""


class LiveSession:
    """A session owned by this machine in one epoch: its one ordered writer.

    Numbers are given in the order of `number()` and never reused in the epoch. `pending` are events
    already published and not yet persisted; a settle takes them over.
    """

    def __init__(
        self, session_id: UUID, user_id: UUID, epoch: int, next_n: int, committer: Committer
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        self.epoch = epoch
        self.next_n = next_n
        self.pending: list[Numbered] = []
        self.fenced = False
        self.turn_id: UUID | None = None
        self.cancel_requested: UUID | None = None
        self.task: asyncio.Task[None] | None = None
        self._committer = committer
        self._subscribers: set[Subscriber] = set()
        self._interruptible: asyncio.Task[object] | None = None

    # --- writing ---

    def number(self, events: Iterable[bytes]) -> list[Numbered]:
        """Give events their numbers; they must then be published or settled in this order."""
        numbered = [Numbered(n, event) for n, event in enumerate(events, self.next_n)]
        self.next_n += len(numbered)
        return numbered

    def publish_unsettled(self, events: list[bytes]) -> None:
        """Publish STARTs and deltas at once and leave persisting them to the group commit."""
        numbered = self.number(events)
        self.pending += numbered
        self._committer.note(self)
        for subscriber in self._subscribers:
            subscriber.push(numbered)

    def publish_settled(self, numbered: list[Numbered]) -> None:
        """Publish events that a settle has just persisted."""
        for subscriber in self._subscribers:
            subscriber.push(numbered)

    # --- reading ---

    def subscribe(self) -> tuple[Subscriber, list[Numbered]]:
        """Return a subscriber for all later events, and those published but not yet persisted."""
        subscriber = Subscriber()
        if self.fenced:
            subscriber.cut_off()
        else:
            self._subscribers.add(subscriber)
        return subscriber, list(self.pending)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber; safe to call twice."""
        self._subscribers.discard(subscriber)

    # --- ends ---

    def fence(self) -> None:
        """Stop being the owner here: nothing more is published, subscribers are cut, the run ends."""
        self.fenced = True
        self.pending = []
        self.cut_subscribers()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def cut_subscribers(self) -> None:
        """End the streams of all subscribers; they come back with their cursor."""
        for subscriber in self._subscribers:
            subscriber.cut_off()
        self._subscribers.clear()

    def finish(self) -> None:
        """End after a release: subscribers read on from the log."""
        for subscriber in self._subscribers:
            subscriber.finish()
        self._subscribers.clear()

    # --- cancelling ---

    def request_cancel(self, turn_id: UUID) -> None:
        """Ask the turn to stop: at once when its step can be interrupted, else after it settles."""
        if self.cancel_requested == turn_id:
            return
        self.cancel_requested = turn_id
        if self._interruptible is not None:
            self._interruptible.cancel()

    def enter_step(self, turn_id: UUID) -> None:
        """Mark the current task as stoppable by `request_cancel`. Raises Interrupted if one came already."""
        if self.cancel_requested == turn_id:
            raise Interrupted
        self._interruptible = asyncio.current_task()

    def leave_step(self) -> None:
        """End what `enter_step` began."""
        self._interruptible = None

    def was_interrupted(self, turn_id: UUID) -> bool:
        """Say whether a CancelledError in the current task came from `request_cancel`, and absorb it."""
        task = asyncio.current_task()
        if task is None or self.cancel_requested != turn_id:
            return False
        return task.uncancel() == 0


class Hub:
    """The live sessions of this machine, and the readers that wait for sessions owned elsewhere."""

    def __init__(self) -> None:
        self.live: dict[UUID, LiveSession] = {}
        self.claiming: dict[UUID, int] = {}
        self.leaving = asyncio.Event()
        """This process is about to end: streams end too, and their readers come back elsewhere."""
        self._remote: dict[UUID, set[asyncio.Event]] = {}

    def add(self, session: LiveSession) -> None:
        """Register a session just claimed; an older epoch of it that still runs is fenced."""
        older = self.live.get(session.session_id)
        if older is not None:
            older.fence()
        self.live[session.session_id] = session
        metrics.sessions_owned = len(self.live)
        self.wake_remote(session.session_id)

    def remove(self, session: LiveSession) -> None:
        """Forget a session that was released or lost; its readers go on from the log."""
        if self.live.get(session.session_id) is session:
            del self.live[session.session_id]
            metrics.sessions_owned = len(self.live)
        session.finish()
        self.wake_remote(session.session_id)

    @contextmanager
    def claim_under_way(self, session_ids: Iterable[UUID]) -> Generator[None]:
        """Say that these sessions may be this machine's any moment: nobody else here is to take them."""
        counts, ids = self.claiming, list(session_ids)
        for session_id in ids:
            counts[session_id] = counts.get(session_id, 0) + 1
        try:
            yield
        finally:
            for session_id in ids:
                counts[session_id] -= 1
                if not counts[session_id]:
                    del counts[session_id]

    def watch(self, session_id: UUID) -> asyncio.Event:
        """Return an event that is set whenever the session's log may have grown."""
        event = asyncio.Event()
        self._remote.setdefault(session_id, set()).add(event)
        return event

    def unwatch(self, session_id: UUID, event: asyncio.Event) -> None:
        """End what `watch` began."""
        events = self._remote.get(session_id)
        if events is not None:
            events.discard(event)
            if not events:
                del self._remote[session_id]

    def wake_remote(self, session_id: UUID) -> None:
        """Let the session's watchers read the log again."""
        for event in self._remote.get(session_id, ()):
            event.set()

    def wake_all_remote(self) -> None:
        """Let every watcher read again: after a (re)LISTEN, and slowly for ever after."""
        for session_id in self._remote:
            self.wake_remote(session_id)

    def close_streams(self) -> None:
        """End every stream of this process at once."""
        self.leaving.set()
        for session in self.live.values():
            session.cut_subscribers()
        self.wake_all_remote()

    @property
    def busy(self) -> list[UUID]:
        """Sessions that run here or are being claimed: not for the sweep."""
        return [*self.live, *self.claiming]
