"""The control groups around one run of a machine: memory, and the freezer where that is chosen."""

from __future__ import annotations

from pathlib import Path

from fly_emulator.machines import cgroup, memory
from fly_emulator.machines.freeze import CgroupFreezer, Freezer, SignalFreezer
from fly_emulator.machines.settings import MachineSettings


class Cell:
    """Made before a start; `remove` ends what is left in it. `notes` say what this host cannot do."""

    def __init__(self, machine_id: str, memory_mb: int, settings: MachineSettings) -> None:
        self.notes: list[str] = []
        self.groups: list[cgroup.Cgroup] = []
        self.freezer: Freezer = SignalFreezer()
        self._memory: memory.MemoryLimit | None = None
        if settings.memory_limit:
            self._limit(machine_id, memory_mb)
        if settings.freezer == "cgroup":
            self._freezer(machine_id)

    def _limit(self, machine_id: str, memory_mb: int) -> None:
        self._memory = memory.limit(machine_id, memory_mb)
        if self._memory is None:
            self.notes.append("memory is not limited: this host does not let us make control groups")
        else:
            self.groups.append(self._memory.group)

    def _freezer(self, machine_id: str) -> None:
        # In v2 the memory group is a freezer too, and a process can be in one group only.
        shared = next((group for group in self.groups if group.version == 2), None)
        group = shared or cgroup.make("freezer", machine_id)
        if group is None:
            self.notes.append("freezing by signal: this host does not let us make control groups")
            return
        self.freezer = CgroupFreezer(group)
        if shared is None:
            self.groups.append(group)

    @property
    def files(self) -> list[Path]:
        """What the process writes its pid to before the program runs."""
        return [group.procs for group in self.groups]

    def pids(self) -> frozenset[int]:
        """Return who is in the groups, sessions of their own included."""
        return frozenset(pid for group in self.groups for pid in group.pids())

    def kill(self) -> None:
        """End what is in the groups."""
        for group in self.groups:
            group.kill()

    def oom_killed(self) -> bool:
        """Say whether the memory limit has killed."""
        return self._memory is not None and self._memory.oom_killed()

    async def remove(self) -> None:
        """End what is left and remove the groups."""
        for group in self.groups:
            await group.remove()


async def remove_leftover(machine_id: str) -> None:
    """Remove the groups that an emulator which died left behind."""
    for controller in ("memory", "freezer"):
        group = cgroup.existing(controller, machine_id)
        if group is not None:
            CgroupFreezer(group).release()
            await group.remove()
