"""Ends process groups when whoever started them is gone, however it went; run as a script by `processes`.

It reads from stdin "+GROUP SIGNAL" and "-GROUP", and acts when stdin ends: the kernel closes the pipe even
when the other side was killed with SIGKILL. Standard library only, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 6.0
_STEP_S = 0.05


def main() -> None:
    """Watch until stdin ends, then end what is left."""
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            group, number = line[1:].split()
            groups[int(group)] = int(number)
        else:
            groups.pop(int(line[1:]), None)
    end(groups)


def end(groups: dict[int, int]) -> None:
    """Send each group its own signal, last started first, and SIGKILL to those that stay."""
    for group, number in reversed(groups.items()):
        _send(group, number)
    deadline = time.monotonic() + GRACE_S
    while (groups := {group: n for group, n in groups.items() if _send(group, 0)}) and (
        time.monotonic() < deadline
    ):
        time.sleep(_STEP_S)
    for group in groups:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Signal a group; say whether it exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
