"""What the backend's machine does: asleep, waking, awake; read from Fly's Machines API.

States come from the machine's events, so that none is missed between two looks. Times are those of the
events; a wake is measured from the sending of the request that caused it to the passing of the checks.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import aiohttp
import msgspec

from myhealth_cli import events

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from myhealth_cli.events import Event

State: TypeAlias = Literal["starting", "awake", "asleep", "waking", "crashed"]

LOOK_S: Final = 0.2
"""Between two looks; shorter while it wakes, since somebody waits."""
_WAKING_LOOK_S: Final = 0.05
_AWAY: Final = (aiohttp.ClientError, TimeoutError, msgspec.DecodeError)
_TOKENS: Final = (
    events.TextContent,
    events.ReasoningContent,
    events.ToolCallStart,
    events.ToolCallArgs,
)


class Address(msgspec.Struct, frozen=True):
    """Where the Machines API of an app is, as `fly-emulator run --json` says it."""

    app: str
    api: str
    token: str


class _Exit(msgspec.Struct, frozen=True):
    exit_code: int = 0
    requested_stop: bool = False


class _Request(msgspec.Struct, frozen=True):
    exit_event: _Exit | None = None


class _Event(msgspec.Struct, frozen=True):
    id: str
    type: str
    status: str
    timestamp: int
    request: _Request | None = None


class _Check(msgspec.Struct, frozen=True):
    status: str
    updated_at: dt.datetime


class _Machine(msgspec.Struct, frozen=True):
    state: str
    events: list[_Event] = []
    checks: list[_Check] = []

    @property
    def healthy(self) -> bool:
        return self.state == "started" and all(each.status == "passing" for each in self.checks)

    @property
    def healthy_since(self) -> float:
        started = next((each.timestamp / 1000 for each in self.events if each.status == "started"), 0.0)
        return max([started, *(each.updated_at.timestamp() for each in self.checks)])


@dataclass(frozen=True)
class Wake:
    """A machine woke: all in seconds; `slept` is how long it had slept, None where that is not known."""

    slept: float | None
    took: float
    first_token: float | None = None


@dataclass(frozen=True)
class Change:
    """The machine is in another state, or (`first_token`) a wake has led to the first words of an answer."""

    state: State
    wake: Wake | None = None
    first_token: bool = False

    def __str__(self) -> str:
        if self.wake is not None and self.first_token:
            return f"· first token after {_ms(self.wake.first_token)}"
        match self.state:
            case "waking" | "starting":
                return f"· {self.state} ..."
            case "awake" if self.wake is not None:
                return f"· awake after {_ms(self.wake.took)}"
            case "crashed":
                return "· crashed; it is started again"
            case _:
                return f"· {self.state}"


class Machine:
    """Follows the one machine of an app. An async context manager; `run()` looks until it is cancelled."""

    def __init__(self, address: Address) -> None:
        self.url = f"{address.api}/v1/apps/{address.app}/machines"
        """In the Machines API."""
        self.state: State = "starting"
        self.wake: Wake | None = None
        """The last one."""
        self._headers = {"Authorization": f"Bearer {address.token}"}
        self._listeners: list[Callable[[Change], None]] = []
        self._changed = asyncio.Event()
        self._seen = ""
        self._sent: deque[float] = deque(maxlen=1000)
        self._slept_at: float | None = None
        self._woken_at = 0.0
        self._asked_at: float | None = None
        """When the request was sent whose answer's first token is still to come."""

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), headers=self._headers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    # --- looking ---

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(_WAKING_LOOK_S if self.state in ("waking", "crashed") else LOOK_S)

    async def look(self) -> None:
        """Look once, and tell what has changed. An API that does not answer tells nothing."""
        try:
            async with self._http.get(self.url) as response:
                machines = msgspec.json.decode(await response.read(), type=list[_Machine])
        except _AWAY:
            return
        if machines:
            self._follow(machines[0])

    async def until(self, state: State) -> None:
        """Return when it is in this state."""
        while self.state != state:
            self._changed.clear()
            await self._changed.wait()

    async def started(self, since: float) -> None:
        """Return when it has become healthy after a start later than `since` (seconds since 1970)."""
        while not (self.state in ("awake", "asleep") and self._woken_at >= since):
            await self.look()
            await asyncio.sleep(_WAKING_LOOK_S)
        # What came before, in an earlier run, was no wake.
        self.wake = self._asked_at = None

    def _follow(self, machine: _Machine) -> None:
        """Go through what has happened since the last look, oldest first."""
        fresh: list[_Event] = []
        for each in machine.events:
            if each.id == self._seen:
                break
            fresh.append(each)
        for each in reversed(fresh):
            self._happened(each)
        if machine.events:
            self._seen = machine.events[0].id
        if machine.healthy and self.state != "awake":
            self._is_awake(machine.healthy_since)

    def _happened(self, event: _Event) -> None:
        at = event.timestamp / 1000
        left = event.request.exit_event if event.request is not None else None
        if event.type == "exit":
            crashed = left is None or (left.exit_code != 0 and not left.requested_stop)
            self._sleeps("crashed" if crashed else "asleep", at)
        elif event.status == "suspended":
            self._sleeps("asleep", at)
        elif event.status == "starting":
            self._woken_at = at
            if self.state == "asleep":
                self._set(Change("waking"))

    def _sleeps(self, state: State, at: float) -> None:
        self._slept_at = at
        self._asked_at = None
        if state != self.state:
            self._set(Change(state))

    def _is_awake(self, at: float) -> None:
        if self.state == "waking":
            slept = self._slept_at
            # A request that was on its way while the machine left is not known here: then the start counts.
            asked = next((each for each in self._sent if slept is None or each >= slept), self._woken_at)
            self.wake = Wake(None if slept is None else asked - slept, max(0.0, at - asked))
            self._asked_at = asked
            self._set(Change("awake", self.wake))
        else:
            self._set(Change("awake"))

    # --- being told ---

    def sending(self) -> None:
        """Take notice that a request is sent now: it wakes a machine that sleeps."""
        self._sent.append(time.time())
        if self.state == "asleep":
            self._set(Change("waking"))

    def received(self, event: Event) -> None:
        """Take notice of an event of a stream: the first token after a wake is told."""
        if self._asked_at is None or self.wake is None or not isinstance(event, _TOKENS):
            return
        self.wake = replace(self.wake, first_token=time.time() - self._asked_at)
        self._asked_at = None
        self._tell(Change(self.state, self.wake, first_token=True))

    @contextmanager
    def telling(self, listener: Callable[[Change], None]) -> Generator[None]:
        """Call `listener` with each change until the block ends."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _set(self, change: Change) -> None:
        self.state = change.state
        self._changed.set()
        self._tell(change)

    def _tell(self, change: Change) -> None:
        for listener in list(self._listeners):
            listener(change)


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1000:,.0f} ms"
