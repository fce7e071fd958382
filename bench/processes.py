"""Processes of a run: started on their core, measured from outside, ended. Linux only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

_READY_SECONDS = 30
_STOP_SECONDS = 15


class Cores(NamedTuple):
    """Where the server runs, and where the model, the client and Postgres run."""

    server: set[int]
    others: set[int]


def cores() -> Cores:
    """Return the first core for the server and the rest for the others (the same, if there is one)."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores({usable[0]}, set(usable[1:]) or {usable[0]})


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process in nanoseconds, all threads.

    The kernel's clock id of another process is ~pid << 3 | 2 (what clock_getcpuclockid(3) returns).
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def tree_cpu_ns(pid: int) -> int:
    """Return the CPU time of a process and its living children."""
    total = cpu_ns(pid)
    for child in psutil.Process(pid).children(recursive=True):
        try:
            total += cpu_ns(child.pid)
        except OSError:  # it has ended meanwhile
            continue
    return total


class Memory(NamedTuple):
    """Megabytes (2^20 bytes)."""

    pss: float
    rss: float
    private: float


def memory(pid: int) -> Memory:
    """Return what a process holds: `pss` divides shared pages among those who share them."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value, *_ = line.split()
        found[name] = int(value)
    private = found["Private_Clean:"] + found["Private_Dirty:"]
    return Memory(found["Pss:"] / 1024, found["Rss:"] / 1024, private / 1024)


class Process:
    """A child on given cores; its output goes to `log`."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], on: set[int], log: Path, *, stdout: bool = False
    ) -> None:
        self.log = log
        before = os.sched_getaffinity(0)
        with log.open("ab") as output:
            os.sched_setaffinity(0, on)  # the child inherits it
            try:
                self.began = time.monotonic_ns()
                self._child = subprocess.Popen(
                    command, env=env, stdout=subprocess.PIPE if stdout else output, stderr=output
                )
            finally:
                os.sched_setaffinity(0, before)
        self.pid = self._child.pid

    def first_line(self) -> bytes:
        """Return what it prints first."""
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def check(self) -> None:
        """Raise if it has ended."""
        if self._child.poll() is not None:
            raise RuntimeError(f"{self._child.args!r} ended with {self._child.returncode}:\n{self.output()}")

    def output(self) -> str:
        """Return the end of what it has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def stop(self) -> None:
        """End it: by SIGTERM, and if that does not help by SIGKILL."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def await_ready(process: Process, port: int) -> float:
    """Return the milliseconds from exec to the first 200 of GET /readyz."""
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_READY_SECONDS) as connection:
                connection.sendall(request)
                if connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    return (time.monotonic_ns() - process.began) / 1e6
        except OSError:
            pass
        process.check()
        time.sleep(0.001)
    raise RuntimeError(f"not ready in {_READY_SECONDS} s: {process.log}")
