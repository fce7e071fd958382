"""The one replay-then-live iterator under every transport.

It reads the log, then the owner's events that are not persisted yet, then what comes: no gap, no duplicate.
A session owned elsewhere is followed through its log. What an unclean end left open is closed and the settled
conversation sent; a cursor that fell off the log gets a snapshot and a new cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import NamedTuple, TypeVar
from uuid import UUID

from agent_backend import events as agui
from agent_backend.db import events as log
from agent_backend.db import sessions as store
from agent_backend.errors import MalformedRequest, NotFound
from agent_backend.events import START, Cursor
from agent_backend.sessions import FINAL
from agent_backend.telemetry import Log
from agent_backend.transcript import to_agui
from agent_backend.turns.committer import CONNECTION_TROUBLE, LOCKED
from agent_backend.turns.fanout import LiveSession, Numbered
from agent_backend.turns.machine import Machine

T = TypeVar("T")

_PATIENCE_SECONDS = 60.0
"""A reader waits for a database that is away for so long: the turn it watches goes on meanwhile."""

_log = Log("stream")


class Placed(NamedTuple):
    """An event and its cursor; None for one that has no place of its own (part of a snapshot)."""

    cursor: Cursor | None
    event: bytes


class CutOff(Exception):
    """The stream must end here and the client come back with its cursor.

    It was too slow, or the owner it listened to lost its lease.
    """


def parse_cursor(text: str | None, field: str) -> Cursor | None:
    """Read a cursor a client sent back. Raises MalformedRequest."""
    if text is None or text == "":
        return None
    try:
        return Cursor.parse(text)
    except ValueError as error:
        raise MalformedRequest(f"{field}: {error}") from None


class Follower:
    """Follows one session for one reader. `turn_id` narrows a snapshot to the turn that is asked for."""

    def __init__(
        self,
        machine: Machine,
        user_id: UUID,
        session_id: UUID,
        after: Cursor | None,
        turn_id: UUID | None = None,
    ) -> None:
        self._machine = machine
        self._user_id = user_id
        self._session_id = session_id
        self._turn_id = turn_id
        self._caught_up = False
        self._told = False
        self.cursor = after or START

    async def check(self) -> None:
        """Raise NotFound unless the session is this user's."""
        if not await store.read_sessions(
            self._machine.database, self._user_id, session_id=self._session_id, limit=1
        ):
            raise NotFound("There is no such session.")

    async def batches(self, *, wait: bool = True) -> AsyncGenerator[list[Placed]]:
        """Yield events after the cursor, for ever or (`wait` false) up to the present; a batch may be empty.

        Raises NotFound, CutOff.
        """
        hub = self._machine.hub
        changed = hub.watch(self._session_id)
        try:
            while True:
                changed.clear()
                async with aclosing(self._present(wait=wait)) as batches:
                    async for batch in batches:
                        self._told = self._told or bool(batch)
                        yield batch
                if not wait:
                    return
                if self._caught_up:
                    await changed.wait()
                if hub.leaving.is_set():
                    raise CutOff
        finally:
            hub.unwatch(self._session_id, changed)

    async def _present(self, *, wait: bool) -> AsyncGenerator[list[Placed]]:
        """Yield what the log holds, then, if the session is owned here, follow its owner to the release."""
        while True:
            live = self._machine.hub.live.get(self._session_id)
            # Subscribed before the log is read: what is persisted in between comes twice and is dropped once.
            subscriber, pending = live.subscribe() if live else (None, [])
            try:
                page = await self._read()
                if self._off_the_log(page):
                    if self._told:
                        # A snapshot begins with RUN_STARTED: strict clients take it at a stream's start only.
                        raise CutOff
                    yield await self._resync()
                    continue
                for item in page.items:
                    yield await self._from_log(item)
                if not page.complete:
                    continue
                self._caught_up = live is None or not self._matches(page, live)
                if live is not None and subscriber is not None and not self._caught_up:
                    yield self._after_cursor(live.epoch, pending)
                    while wait and (events := await subscriber.take()):
                        yield self._after_cursor(live.epoch, events)
                    if subscriber.cut:
                        raise CutOff
                return
            finally:
                if live is not None and subscriber is not None:
                    live.unsubscribe(subscriber)

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the database, and again while it is away or comes back. Raises CutOff when it stays away."""
        loop, delay = asyncio.get_running_loop(), 0.05
        give_up_at = loop.time() + _PATIENCE_SECONDS
        while True:
            try:
                return await ask()
            except (*CONNECTION_TROUBLE, *LOCKED) as error:
                if loop.time() > give_up_at or self._machine.hub.leaving.is_set():
                    raise CutOff from error
                _log.info("read_again", session_id=self._session_id)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    # --- the log ---

    async def _read(self) -> log.LogPage:
        page = await self._asked(
            lambda: log.read(self._machine.database, self._user_id, self._session_id, self.cursor)
        )
        if page is None:
            raise NotFound("There is no such session.")
        return page

    async def _from_log(self, item: tuple[Cursor, list[bytes]] | log.Marker) -> list[Placed]:
        if isinstance(item, log.Marker):
            batch = await self._from_marker(item)
            self.cursor = item.at
            return batch
        first, events = item
        batch = [Placed(Cursor(first.epoch, n), event) for n, event in enumerate(events, first.n)]
        if batch:
            self.cursor = Cursor(first.epoch, first.n + len(events) - 1)
        return batch

    async def _from_marker(self, marker: log.Marker) -> list[Placed]:
        """Close what the dead owner left open and send what is settled.

        The result depends on the log alone, so a reader that was cut in the middle of it gets the rest.
        """
        database, user, session = self._machine.database, self._user_id, self._session_id
        closing = agui.closings(await self._unsettled_before(marker))
        read = await self._asked(lambda: store.read_messages(database, user, session, through=marker.through))
        snapshot = agui.MessagesSnapshot(messages=to_agui([] if read is None else read.messages))
        placed = [Placed(Cursor(marker.at.epoch, n), event) for n, event in enumerate(closing, 1)]
        placed.append(Placed(marker.at, agui.encode(snapshot)))
        return [each for each in placed if each.cursor is not None and each.cursor > self.cursor]

    async def _unsettled_before(self, marker: log.Marker) -> list[bytes]:
        events: list[bytes] = []
        position = marker.settled
        while True:
            page = await self._asked(
                partial(log.read, self._machine.database, self._user_id, self._session_id, position)
            )
            if page is not None and position < page.floor:
                # Compacted since the marker was read: what it is to close can no longer be told.
                raise CutOff
            for item in page.items if page is not None else []:
                if isinstance(item, log.Marker) or item[0] > marker.at:
                    return events
                events += item[1]
                position = Cursor(item[0].epoch, item[0].n + len(item[1]) - 1)
            if page is None or page.complete:
                return events

    # --- the owner ---

    def _matches(self, page: log.LogPage, live: LiveSession) -> bool:
        return page.owner == self._machine.incarnation and page.epoch == live.epoch and not live.fenced

    def _after_cursor(self, epoch: int, events: list[Numbered]) -> list[Placed]:
        cursor = self.cursor
        batch = [Placed(place, event) for n, event in events if (place := Cursor(epoch, n)) > cursor]
        if batch:
            self.cursor = batch[-1].cursor or cursor
        return batch

    # --- cursors that fell off ---

    def _off_the_log(self, page: log.LogPage) -> bool:
        """Say whether what follows the cursor cannot be told from the log."""
        cursor = self.cursor
        if cursor in (page.settled, page.floor):
            return False
        if cursor < page.floor or cursor.epoch > page.epoch:
            return True
        ahead = cursor.n > (page.known_last or 0)
        # In the current epoch the owner may not have persisted yet what this reader has seen.
        return ahead and (cursor.epoch < page.epoch or page.owner is None)

    async def _resync(self) -> list[Placed]:
        """Return the settled conversation as a run's beginning, with a new cursor on its last event."""
        # Before the messages: a turn that had ended by then has all of its messages among them.
        ended = await self._own_end()
        read = await self._asked(
            lambda: store.read_messages(self._machine.database, self._user_id, self._session_id)
        )
        if read is None:
            raise NotFound("There is no such session.")
        if ended is None and self._turn_id != read.turn_id and await self._own_end():
            # It ended in between, and another has begun: look again.
            return await self._resync()
        self.cursor = read.settled
        turn_id, state = (self._turn_id, ended) if ended else (read.turn_id, read.turn_state)
        if turn_id is None or state is None:
            return []
        thread, run = str(self._session_id), str(turn_id)
        events = [
            agui.encode(agui.RunStarted(thread_id=thread, run_id=run)),
            agui.encode(agui.MessagesSnapshot(messages=to_agui(read.messages))),
        ]
        if state in FINAL:
            events.append(_end_of_run(thread, run, state))
        # Only the last carries the new cursor: who is cut before it gets the whole again.
        return [*(Placed(None, event) for event in events[:-1]), Placed(read.settled, events[-1])]

    async def _own_end(self) -> str | None:
        """Return the final state of the turn that is asked for; None while it has none."""
        if self._turn_id is None:
            return None
        asked = partial(store.read_turn, self._machine.database, self._user_id, self._session_id)
        own = await self._asked(partial(asked, self._turn_id))
        return own.state if own is not None and own.state in FINAL else None


def _end_of_run(thread: str, run: str, state: str) -> bytes:
    match state:
        case "completed":
            return agui.encode(agui.RunFinished(thread_id=thread, run_id=run, outcome=agui.SuccessOutcome()))
        case "cancelled":
            return agui.encode(
                agui.RunFinished(thread_id=thread, run_id=run, outcome=agui.CancelledOutcome())
            )
        case _:
            return agui.encode(agui.RunError(message="This turn failed.", code="failed"))


async def one_turn(
    batches: AsyncGenerator[list[Placed]], turn_id: UUID, *, inside: bool
) -> AsyncGenerator[list[Placed]]:
    """Narrow a session's events to one turn, up to its end.

    `inside`: the cursor stands in this turn already; otherwise everything before its RUN_STARTED is left out.
    """
    run_id = str(turn_id)
    async for batch in batches:
        if not inside:
            start = next((i for i, each in enumerate(batch) if agui.starts_run(each.event, run_id)), None)
            if start is None:
                continue
            batch = batch[start:]  # noqa: PLW2901 - what came before belongs to other turns
            inside = True
        for count, each in enumerate(batch, 1):
            if agui.ends_run(each.event):
                yield batch[:count]
                return
        yield batch
