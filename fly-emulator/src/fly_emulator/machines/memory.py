"""A machine's memory limit: a control group of its own, where the host lets us make one.

Fly's kernel kills inside the machine when its memory is used up; the exit event says `oom_killed`.
"""

from __future__ import annotations

from fly_emulator.machines import cgroup

_MB = 1024 * 1024


class MemoryLimit:
    """A limit on everything a machine runs."""

    def __init__(self, group: cgroup.Cgroup) -> None:
        self.group = group

    def oom_killed(self) -> bool:
        """Say whether the kernel has killed in it."""
        name = "memory.oom_control" if self.group.version == 1 else "memory.events"
        return self.group.counter(name, "oom_kill") > 0


def limit(machine_id: str, megabytes: int, place: cgroup.Place = cgroup.find) -> MemoryLimit | None:
    """Make the limit, swap included; None where this host does not let us."""
    group = cgroup.make("memory", machine_id, place)
    if group is None:
        return None
    total = str(megabytes * _MB)
    try:
        if group.version == 1:
            group.write("memory.limit_in_bytes", total)
            if (group.path / "memory.memsw.limit_in_bytes").exists():
                group.write("memory.memsw.limit_in_bytes", total)
        else:
            group.write("memory.max", total)
            if (group.path / "memory.swap.max").exists():
                group.write("memory.swap.max", "0")
    except OSError:
        return None
    return MemoryLimit(group)
