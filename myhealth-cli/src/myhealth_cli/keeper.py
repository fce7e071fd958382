"""Ends processes when whoever started them is gone, however it went; run as a script by `processes`.

It reads from stdin "=MARK", "+GROUP SIGNAL" and "-GROUP", and acts when stdin ends: the kernel closes the
pipe even when the other side was killed with SIGKILL. Groups get their signal first; then all that bears the
mark in its environment is killed, which finds what a group's leader had started in groups of their own and
could not end any more. Standard library only, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "MYHEALTH_FAMILY"
"""The environment variable that says which family a process belongs to."""
GRACE_S = 6.0
_STEP_S = 0.05
_ROUNDS = 20
_PROC = Path("/proc")


def main() -> None:
    """Watch until stdin ends, then end what is left."""
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    groups: dict[int, int] = {}
    mark = ""
    for line in sys.stdin:
        if line.startswith("="):
            mark = line[1:].strip()
        elif line.startswith("+"):
            group, number = line[1:].split()
            groups[int(group)] = int(number)
        else:
            groups.pop(int(line[1:]), None)
    end(groups, mark)


def end(groups: dict[int, int], mark: str) -> None:
    """Send each group its signal, last started first; SIGKILL to those that stay and to what is marked."""
    for group, number in reversed(groups.items()):
        _send(group, number)
    deadline = time.monotonic() + GRACE_S
    while (groups := {group: n for group, n in groups.items() if _send(group, 0)}) and (
        time.monotonic() < deadline
    ):
        time.sleep(_STEP_S)
    for group in groups:
        _send(group, signal.SIGKILL)
    # More than once: what is being killed may have been starting something.
    for _ in range(_ROUNDS):
        found = marked(mark)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(_STEP_S)


def marked(mark: str) -> list[int]:
    """Return the processes, except this one, that have the mark in their environment."""
    wanted = f"{MARK}={mark}"
    if (_PROC / "self" / "environ").exists():
        pids = [int(each) for each in os.listdir(_PROC) if each.isdigit()]  # noqa: PTH208 - names are enough
        found = [pid for pid in pids if wanted.encode() in _environ(pid).split(b"\0")]
    else:
        # macOS: -E adds the environment, of one's own processes only.
        listed = subprocess.run(
            ["/bin/ps", "-axEww", "-o", "pid=,command="], capture_output=True, check=False
        ).stdout.decode("utf-8", "replace")
        lines = [line.split() for line in listed.splitlines()]
        found = [int(words[0]) for words in lines if wanted in words[1:]]
    return [pid for pid in found if pid != os.getpid()]


def _environ(pid: int) -> bytes:
    """Return a process' environment: empty for a zombie, for one that is gone and for somebody else's."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _send(group: int, number: int) -> bool:
    """Signal a group; say whether it exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
