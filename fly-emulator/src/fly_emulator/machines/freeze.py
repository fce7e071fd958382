"""Suspend and resume: everything a machine runs is frozen and thawed, without a signal it could notice.

Two strategies behind one port. `signal` (SIGSTOP and SIGCONT to the process group) works everywhere, but a
descendant that made a session of its own runs on; `cgroup` freezes all of them and needs root on Linux.
With either, memory stays where it is, the monotonic clock goes on, and sockets stay open: see `connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Literal, Protocol, TypeAlias

from fly_emulator.errors import StateError
from fly_emulator.machine_config import MachineConfig
from fly_emulator.machines import cgroup, processes

FreezerName: TypeAlias = Literal["signal", "cgroup"]
_MAX_SUSPEND_MB = 2048
_PATIENCE = 5.0
_STEP = 0.002
_BLOCKED = 0.05


class Freezer(Protocol):
    """Freezes one machine's processes. Neither call reaches the program as a signal it can handle."""

    async def freeze(self, pgid: int) -> None:
        """Return when nothing of it runs any more; freezing twice is harmless. Raises StateError."""
        ...

    async def thaw(self, pgid: int) -> None:
        """Let it go on; thawing what is not frozen is harmless."""
        ...


class SignalFreezer:
    """SIGSTOP and SIGCONT."""

    async def freeze(self, pgid: int) -> None:
        """Stop the group and wait until the host says so of each member (where the host says it)."""
        now = asyncio.get_running_loop().time
        until, blocked_since = now() + _PATIENCE, now()
        while True:
            try:
                os.killpg(pgid, signal.SIGSTOP)
            except (ProcessLookupError, PermissionError):
                raise StateError("the machine's processes are gone", status=500) from None
            # A member may have forked between the signal and the look: the signal goes out again.
            found = set(processes.group(pgid).values())
            if found <= {"T", "t"}:
                return
            if not found <= {"T", "t", "D"}:
                blocked_since = now()
            elif now() - blocked_since > _BLOCKED:
                # Waits for a stopped child it has made by vfork: it cannot run, nor be stopped.
                return
            if now() > until:
                raise StateError("the machine's processes did not stop", status=500)
            await asyncio.sleep(_STEP)

    async def thaw(self, pgid: int) -> None:
        """Continue the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, signal.SIGCONT)


class CgroupFreezer:
    """The kernel's freezer, v1 or v2."""

    def __init__(self, group: cgroup.Cgroup) -> None:
        self.group = group

    async def freeze(self, pgid: int) -> None:
        """Freeze the group and wait until the kernel says so."""
        del pgid
        until = asyncio.get_running_loop().time() + _PATIENCE
        self._set(frozen=True)
        while not self._frozen():
            if asyncio.get_running_loop().time() > until:
                self._set(frozen=False)
                raise StateError("the machine's processes did not freeze", status=500)
            await asyncio.sleep(_STEP)

    async def thaw(self, pgid: int) -> None:
        """Thaw the group."""
        del pgid
        self.release()

    def release(self) -> None:
        """Thaw it if it is a freezer at all, so that what is in it can be ended."""
        with contextlib.suppress(OSError):
            self._set(frozen=False)

    def _set(self, *, frozen: bool) -> None:
        if self.group.version == 1:
            self.group.write("freezer.state", "FROZEN" if frozen else "THAWED")
        else:
            self.group.write("cgroup.freeze", "1" if frozen else "0")

    def _frozen(self) -> bool:
        if self.group.version == 1:
            return (self.group.path / "freezer.state").read_text().strip() == "FROZEN"
        return self.group.counter("cgroup.events", "frozen") == 1


def suspend_obstacle(config: MachineConfig) -> str | None:
    """Say why Fly stops such a machine instead of suspending it; None when it suspends it.

    Source: superfly/docs `reference/suspend-resume`, Requirements.
    """
    if config.guest.memory_mb > _MAX_SUSPEND_MB:
        return "more than 2 GB of memory"
    if config.init.swap_size_mb:
        return "swap is configured"
    return "a schedule is configured" if config.schedule else None
