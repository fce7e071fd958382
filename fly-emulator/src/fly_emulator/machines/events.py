"""What happened to a machine, as the Machines API lists it: newest first, the last few only.

Source: superfly/fly-go `machine_types.go` (MachineEvent, MachineExitEvent).
"""

from __future__ import annotations

import signal
from typing import Literal, TypeAlias

import msgspec

from fly_emulator.clock import now_ms, timestamp
from fly_emulator.machines.ids import ulid
from fly_emulator.ports import State

EventType: TypeAlias = Literal["launch", "start", "exit", "stop", "suspend", "restart", "update", "destroy"]
EventSource: TypeAlias = Literal["user", "flyd", "proxy"]


class ExitEvent(msgspec.Struct, frozen=True, kw_only=True):
    """How the main child ended. A signal of -1 means none."""

    exit_code: int
    guest_exit_code: int
    guest_signal: int
    signal: int
    oom_killed: bool
    requested_stop: bool
    restarting: bool
    exited_at: str


class EventRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came with an event."""

    exit_event: ExitEvent | None = None
    restart_count: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened, at `timestamp` (milliseconds since 1970)."""

    id: str
    type: EventType
    status: State
    source: EventSource
    timestamp: int
    request: EventRequest | None = None


def event(
    kind: EventType, status: State, source: EventSource, *, request: EventRequest | None = None
) -> Event:
    """Return an event of now."""
    moment = now_ms()
    return Event(id=ulid(moment), type=kind, status=status, source=source, timestamp=moment, request=request)


def exit_event(returncode: int, *, oom_killed: bool, requested_stop: bool, restarting: bool) -> ExitEvent:
    """Describe an end by its return code, which is negative for a signal, as in `subprocess`."""
    killer = -returncode if returncode < 0 else -1
    return ExitEvent(
        exit_code=128 + killer if returncode < 0 else returncode,
        guest_exit_code=max(returncode, 0),
        guest_signal=killer,
        signal=killer,
        oom_killed=oom_killed,
        requested_stop=requested_stop,
        restarting=restarting,
        exited_at=timestamp(),
    )


def describe(returncode: int) -> str:
    """Say it in the words of Fly's init."""
    if returncode >= 0:
        return f"Main child exited normally with code: {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"Main child exited with signal (with signal '{name}', core dumped? false)"
