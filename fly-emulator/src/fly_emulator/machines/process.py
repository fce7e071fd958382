"""A machine's main child: a real process in a session of its own, with everything it starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fly_emulator.errors import StateError
from fly_emulator.machines import processes
from fly_emulator.machines.processes import Identity

_LINE_LIMIT = 16_384
"""Bytes after which a line is broken."""
_TAIL = 30
"""Lines kept to tell why a process died."""
_DRAIN = 1.0
"""Seconds for the last output to arrive once the main child is gone."""
_JOIN = 'for f in $0; do echo $$ > "$f" || exit 126; done; exec "$@"'
"""Enters the control groups before the program runs: $0 lists their files."""


class Process:
    """One run of a machine's command. Make it with `spawn`."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        output: asyncio.StreamReader,
        transport: asyncio.BaseTransport,
        on_line: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._child = child
        self._output = output
        self._transport = transport
        self._on_line = on_line
        self._on_exit = on_exit
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._pump = asyncio.create_task(self._read())
        self._ended = asyncio.create_task(self._end())
        self.identity: Identity = processes.identity(child.pid) or Identity(pid=child.pid, started="")

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        on_line: Callable[[str], None],
        on_exit: Callable[[], None] = lambda: None,
        cgroups: Sequence[Path] = (),
    ) -> Process:
        """Start `argv`; `on_line` gets each line it prints on either stream. Raises OSError.

        `on_exit` is called when the main child is gone, to end what its group does not hold.
        """
        program = shutil.which(argv[0], path=env.get("PATH"))
        if program is None and not (cwd is not None and (cwd / argv[0]).is_file()):
            raise FileNotFoundError(f"no such program: {argv[0]}")
        command = [argv[0] if "/" in argv[0] else program or argv[0], *argv[1:]]
        if cgroups:
            command = ["/bin/sh", "-c", _JOIN, " ".join(str(path) for path in cgroups), *command]
        # A pipe of our own: asyncio's `wait` would wait for descendants that hold asyncio's pipe open.
        reading, writing = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env),
                cwd=cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(reading, "rb", 0)
        )
        return cls(child, output, transport, on_line, on_exit)

    @property
    def pid(self) -> int:
        """The main child's pid, which is also its process group and session."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._child.returncode

    def signal(self, number: int) -> None:
        """Signal the main child only, as Fly's init does; one that is gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    def kill(self) -> None:
        """End the main child and everything in its group."""
        processes.kill_group(self.pid)

    async def wait(self) -> int:
        """Return the main child's return code once its last output is read and its group is ended."""
        return await asyncio.shield(self._ended)

    async def wait_within(self, seconds: float) -> int | None:
        """Return the return code, or None when it still runs after `seconds`."""
        try:
            return await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            return None

    def members(self) -> frozenset[int]:
        """Return the pids of its process group."""
        return frozenset({self.pid, *processes.group(self.pid)})

    async def _end(self) -> int:
        code = await self._child.wait()
        # On Fly the whole machine goes with its main child.
        processes.kill_group(self.pid)
        self._on_exit()
        await asyncio.wait([self._pump], timeout=_DRAIN)
        self._pump.cancel()
        self._transport.close()
        return code

    async def _read(self) -> None:
        rest = b""
        while chunk := await self._output.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._say(line)
            while len(rest) > _LINE_LIMIT:
                self._say(rest[:_LINE_LIMIT])
                rest = rest[_LINE_LIMIT:]
        if rest:
            self._say(rest)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self.tail.append(text)
        self._on_line(text)


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    stdin: bytes = b"",
    timeout: float,  # noqa: ASYNC109 - what ran too long is killed here, with its group
) -> tuple[int, bytes, bytes]:
    """Run a command to its end; return code, output and errors. Raises OSError, TimeoutError."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(child.communicate(stdin), timeout)
    finally:
        if child.returncode is None:
            processes.kill_group(child.pid)
            await child.wait()
    return child.returncode or 0, output, errors


def signal_number(name: str | int) -> int:
    """Return the number of a signal. Raises StateError (400)."""
    try:
        return int(signal.Signals(name) if isinstance(name, int) else signal.Signals[name.upper()])
    except (KeyError, ValueError):
        raise StateError(f"invalid_argument: unknown signal: {name}", status=400) from None
