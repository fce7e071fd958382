"""What the host says of its processes: who is in a group, and whether a pid is still the same process.

/proc where there is one (Linux); `ps` elsewhere (macOS), for the identity only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import msgspec

_PROC = Path("/proc")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A process: its pid, and when it was started, since pids are used again."""

    pid: int
    started: str


def identity(pid: int) -> Identity | None:
    """Return who has this pid now; None when nobody has."""
    started = _started_proc(pid) if has_proc() else _started_ps(pid)
    return None if started is None else Identity(pid=pid, started=started)


def has_proc() -> bool:
    """Say whether /proc tells about processes here."""
    return (_PROC / "self" / "stat").exists()


def _stat(pid: int | str) -> list[str] | None:
    """Return the fields of /proc/PID/stat that follow the name: state, ppid, pgrp, ..."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _started_proc(pid: int) -> str | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _started_ps(pid: int) -> str | None:
    done = subprocess.run(  # noqa: S603 - a number is all that is passed on
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def group(pgid: int) -> dict[int, str]:
    """Return the members of a process group and their one-letter states; empty without /proc."""
    found: dict[int, str] = {}
    if not has_proc():
        return found
    for entry in os.listdir(_PROC):  # noqa: PTH208 - names are all that is needed of thousands
        fields = _stat(entry) if entry.isdigit() else None
        if fields is not None and fields[2] == str(pgid) and fields[0] != "Z":
            found[int(entry)] = fields[0]
    return found


def belongs_to(pid: int, machine_id: str) -> bool:
    """Say whether a process was started with this machine's id in its environment."""
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"FLY_MACHINE_ID={machine_id}".encode() in environ.split(b"\0")


def kill_group(pgid: int) -> None:
    """End a process group, frozen or not; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def end_leftover(known: Identity, machine_id: str) -> bool:
    """End what a dead emulator left running. Only what is surely its own: pid and start time, or the id."""
    if identity(known.pid) == known:
        kill_group(known.pid)
        return True
    orphans = [pid for pid in group(known.pid) if belongs_to(pid, machine_id)]
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(orphans)
