"""The servers `myhealth dev` starts: each in a process group of its own, none of which outlives it.

Three things end them: leaving the Family, the keeper when this process was killed, and the next run when
the keeper was killed as well (the state file names what was started). What servers start in groups of their
own, as the local Fly does with its machines, is theirs to end; a mark in the environment finds it when they
were killed themselves.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import msgspec

from myhealth_cli import keeper
from myhealth_cli.errors import MyHealthError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_GRACE_S: Final = 8.0
_TAIL: Final = 12
_MESSAGE: Final = 40


class ChildFailedError(MyHealthError):
    """A server ended although nobody asked it to."""


class AlreadyRunningError(MyHealthError):
    """Another `myhealth dev` works in the same folder; `pid` is its process, 0 if that cannot be told."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"`myhealth dev` is running here already (process {pid or 'unknown'})")
        self.pid = pid


class _Started(msgspec.Struct, frozen=True):
    """A line of the state file. `created` tells the process from a later one with the same id."""

    pid: int
    created: float
    stop: int


class Child:
    """A running server."""

    def __init__(self, name: str, process: Process, stop: int, log: Path) -> None:
        self.name = name
        self.process = process
        self.stop_signal = stop
        self.log = log

    @property
    def pid(self) -> int:
        """The process' id, which is its group's as well."""
        return self.process.pid

    async def first_line(self) -> str:
        """Return the first line on stdout. Raises ChildFailedError when it ends without one."""
        assert self.process.stdout is not None, "started with `speaks`"
        line = await self.process.stdout.readline()
        if not line:
            await self.process.wait()
            raise self.failure()
        return line.decode()

    def failure(self) -> ChildFailedError:
        """Return the error that says how it ended, with the last lines it wrote.

        A last message of its own, which begins with its name, is quoted whole.
        """
        code = self.process.returncode
        how = "ended" if code is None else f"ended with code {code}" if code >= 0 else f"was killed ({-code})"
        return ChildFailedError(
            f"{self.name} {how}{_quote(self.log, self.name)}", hint=f"its log: {self.log}"
        )


def _quote(log: Path, name: str) -> str:
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    words = [number for number, line in enumerate(lines) if line.startswith(f"{name}: ")]
    lines = lines[words[-1] :][:_MESSAGE] if words else lines[-_TAIL:]
    return ":\n  " + "\n  ".join(lines) if lines else ""


class Family:
    """Starts servers and ends them all, in reverse, when the block ends. One per folder at a time."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self.mark = {keeper.MARK: hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}
        """What every process of this family has in its environment."""
        self._state = folder / "processes.json"
        self._lock_path = folder / "lock"
        self._lock: IO[str] | None = None
        self._keeper: Process | None = None
        self._children: list[Child] = []
        self._names: set[str] = set()

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._lock_path)
        try:
            await asyncio.to_thread(_end_leftovers, self._state, self.mark[keeper.MARK])
            self._keeper = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", keeper.__file__, stdin=PIPE, env={}, start_new_session=True
            )
        except BaseException:
            self._lock.close()
            raise
        self._tell(f"={self.mark[keeper.MARK]}\n")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        assert self._lock is not None
        for child in reversed(list(self._children)):
            await self.end(child)
        self._keeper.stdin.close()
        await self._keeper.wait()
        self._state.unlink(missing_ok=True)
        self._lock.close()

    async def start(
        self,
        name: str,
        command: list[str],
        env: Mapping[str, str],
        *,
        stop: int = signal.SIGTERM,
        user: int | None = None,
        group: int | None = None,
        speaks: bool = False,
    ) -> Child:
        """Start a server with this environment and the mark; what it writes goes to logs/NAME.log.

        `speaks` keeps its stdout for `first_line()`. `user` and `group` are ids to run under.
        """
        log = self.logs / f"{name}.log"
        # A server that is started again writes on; a new run begins a new log.
        with log.open("ab" if name in self._names else "wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**env, **self.mark},
                stdin=DEVNULL,
                stdout=PIPE if speaks else output,
                stderr=output,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        child = Child(name, process, stop, log)
        self._names.add(name)
        self._children.append(child)
        self._tell(f"+{child.pid} {stop}\n")
        self._remember()
        return child

    async def end(self, child: Child) -> None:
        """Ask a server to stop, and kill it if it does not."""
        with suppress(ProcessLookupError):
            child.process.send_signal(child.stop_signal)
        try:
            async with asyncio.timeout(_GRACE_S):
                await child.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.process.wait()
        self.forget(child)

    def forget(self, child: Child) -> None:
        """Note that a server has ended: its process id may belong to anyone from now on."""
        if child in self._children:
            self._children.remove(child)
            self._tell(f"-{child.pid}\n")
            self._remember()

    def _tell(self, line: str) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(line.encode())

    def _remember(self) -> None:
        started = [_Started(each.pid, _created(each.pid), each.stop_signal) for each in self._children]
        temporary = self._state.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(started))
        temporary.replace(self._state)


def _locked(path: Path) -> IO[str]:
    """Take the folder for this process, until the file is closed or the process has ended."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        text = file.read().strip()
        file.close()
        raise AlreadyRunningError(int(text) if text.isdigit() else 0) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _created(pid: int) -> float:
    import psutil  # noqa: PLC0415 - `chat` and `import` do not need it

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _end_leftovers(state: Path, mark: str) -> None:
    """End what an earlier run has left, if it is still the same process or bears the mark."""
    try:
        started = msgspec.json.decode(state.read_bytes(), type=list[_Started])
    except (OSError, msgspec.DecodeError):
        return
    left = {each.pid: each.stop for each in started if each.created and _created(each.pid) == each.created}
    keeper.end(left, mark)
    state.unlink(missing_ok=True)
