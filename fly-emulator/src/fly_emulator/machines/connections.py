"""Dead sockets: after a real resume a machine's connections look alive though their peers have given up.

Freezing keeps sockets, so on suspend the emulator destroys the machine's established TCP connections with
`ss -K` (root, Linux with CONFIG_INET_DIAG_DESTROY). The difference to Fly: the program is told at its first
use (ECONNABORTED, the peer ECONNRESET), where Fly's program may have to wait for a timeout.
Unix sockets are not cut.
"""

from __future__ import annotations

import asyncio
import re
import shutil

_PIDS = re.compile(r"pid=(\d+)")
_BATCH = 50
"""Connections named in one call."""


async def _ss(*arguments: str) -> tuple[int, str]:
    tool = shutil.which("ss")
    if tool is None:
        return 127, ""
    process = await asyncio.create_subprocess_exec(
        tool, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")


async def established(pids: frozenset[int]) -> list[tuple[str, str]]:
    """Return local and remote address of each established TCP connection of these processes."""
    status, text = await _ss("-tnpH", "state", "established")
    if status:
        return []
    lines = [line.split(maxsplit=4) for line in text.splitlines()]
    return [
        (fields[2], fields[3])
        for fields in lines
        if len(fields) == 5 and any(int(pid) in pids for pid in _PIDS.findall(fields[4]))
    ]


async def cut(pids: frozenset[int]) -> int | None:
    """Destroy the TCP connections of these processes; say how many, None where this host cannot."""
    found = await established(pids)
    if not found:
        return 0 if shutil.which("ss") else None
    for start in range(0, len(found), _BATCH):
        wanted = " or ".join(
            f"( src {local} and dst {remote} )" for local, remote in found[start : start + _BATCH]
        )
        await _ss("-K", "-tnH", wanted)
    left = len(set(await established(pids)) & set(found))
    return None if left == len(found) else len(found) - left
