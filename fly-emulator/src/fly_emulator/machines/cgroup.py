"""Control groups of our own, on hosts that let us make them (root on Linux, v1 or v2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

Controller: TypeAlias = Literal["memory", "freezer"]
Version: TypeAlias = Literal[1, 2]
Place: TypeAlias = Callable[[Controller], tuple[Path, Version] | None]
"""Finds the root of a controller's hierarchy."""
_PREFIX = "fly-emulator-"
_PATIENCE = 2.0
"""Seconds to wait for a killed group's last process to leave."""


class Cgroup:
    """One directory of a hierarchy."""

    def __init__(self, path: Path, version: Version) -> None:
        self.path = path
        self.version: Version = version

    @property
    def procs(self) -> Path:
        """The file that a pid is written to so that it joins."""
        return self.path / "cgroup.procs"

    def pids(self) -> list[int]:
        """Return the members."""
        try:
            return [int(line) for line in self.procs.read_text().split()]
        except OSError:
            return []

    def write(self, name: str, value: str) -> None:
        """Set one of the group's files. Raises OSError."""
        (self.path / name).write_text(value)

    def counter(self, name: str, key: str) -> int:
        """Read `key N` from one of the group's files; 0 where there is none."""
        try:
            lines = (self.path / name).read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)

    def kill(self) -> None:
        """End its members."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def remove(self) -> bool:
        """Kill what is still in it and remove it; say whether it is gone."""
        until = asyncio.get_running_loop().time() + _PATIENCE
        while self.path.exists():
            self.kill()
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return True
            except OSError:
                if asyncio.get_running_loop().time() > until:
                    return False
                await asyncio.sleep(0.005)
        return True


def find(controller: Controller, mounts: Path = Path("/proc/mounts")) -> tuple[Path, Version] | None:
    """Return the root of the hierarchy that has a controller, and its version. v1 wins where both exist."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    unified: Path | None = None
    for line in lines:
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(path), 1
        if kind == "cgroup2":
            unified = Path(path)
    if unified is not None and _offers(unified, controller):
        return unified, 2
    return None


def _offers(unified: Path, controller: Controller) -> bool:
    """Say whether the v2 hierarchy serves children with this controller; freezing needs none."""
    if controller == "freezer":
        return True
    try:
        return controller in (unified / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def make(controller: Controller, name: str, place: Place = find) -> Cgroup | None:
    """Make a group for a machine; None where the host has none or does not let us."""
    found = place(controller)
    if found is None:
        return None
    root, version = found
    group = Cgroup(root / f"{_PREFIX}{name}", version)
    try:
        group.path.mkdir(exist_ok=True)
    except OSError:
        return None
    return group if os.access(group.path, os.W_OK) else None


def existing(controller: Controller, name: str) -> Cgroup | None:
    """Return a group that an earlier emulator made."""
    found = find(controller)
    if found is None:
        return None
    root, version = found
    path = root / f"{_PREFIX}{name}"
    return Cgroup(path, version) if path.is_dir() else None
