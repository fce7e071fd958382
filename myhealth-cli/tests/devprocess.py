"""`myhealth dev` as a process of its own, and what it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil

from myhealth_cli.machine import Address, Machine
from myhealth_cli.tokens import Issuer, SignedIn

from .ports import free_port

PATIENCE_S = 60


def environment(folder: Path) -> dict[str, str]:
    """Return an environment that shares nothing with the person's own stack."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "DEV_KEY_DIR": str(folder / "keys"), "MYHEALTH_DATA": str(folder / "data")}


def myhealth(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """Start `myhealth ARGUMENTS` without a terminal, with the keys and data of `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "myhealth_cli", *arguments],
        env={**environment(folder), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(what: str, happened: Callable[[], bool]) -> None:
    """Return once `happened()` is true; fail naming `what` when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


class Dev:
    """A running `myhealth dev --no-chat`, with its first words read."""

    def __init__(self, folder: Path, port: int, *options: str, **env: str) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = myhealth(folder, "dev", "--no-chat", "--port", str(port), *options, **env)
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Ready."):
                return
        raise AssertionError("".join(self.said))

    @property
    def _state(self) -> Path:
        return self.folder / "data" / str(self.port)

    def servers(self) -> list[psutil.Process]:
        """Return the servers and everything below them."""
        started = json.loads((self._state / "processes.json").read_bytes())
        found = [psutil.Process(each["pid"]) for each in started]
        return [*found, *(below for each in found for below in each.children(recursive=True))]

    def keeper(self) -> psutil.Process:
        """Return the process that ends the servers when `myhealth dev` is killed."""
        children = psutil.Process(self.process.pid).children()
        return next(each for each in children if each.cmdline()[-1].endswith("keeper.py"))

    def backend(self) -> psutil.Process:
        """Return the backend that runs now."""
        return self._find("agent_backend")

    def fly(self) -> psutil.Process:
        """Return the local Fly."""
        return self._find("fly_emulator")

    def _find(self, module: str) -> psutil.Process:
        # The emulator has the backend's command in its own, as one word.
        return next(each for each in self.servers() if module in each.cmdline()[:4])

    def tokens(self, user: str = "demo") -> SignedIn:
        """Return a made-up user's tokens."""
        issuer = Issuer.of(self.url, self.folder / "data")
        assert issuer is not None
        return SignedIn(issuer, user)

    def machine(self) -> Machine:
        """Return the view of the backend's machine, not yet looking."""
        url = next(line for line in self.said if "machine: " in line).split("machine: ")[1].strip()
        api, _, rest = url.partition("/v1/apps/")
        token = (self._state / "fly" / "token").read_text(encoding="utf-8")
        return Machine(Address(app=rest.partition("/")[0], api=api, token=token))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def gone(processes: list[psutil.Process]) -> bool:
    """Say whether none of them runs; where nobody waits for orphans they stay as zombies."""
    return not any(
        each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes if _there(each)
    )


def _there(process: psutil.Process) -> bool:
    try:
        process.status()
    except psutil.NoSuchProcess:
        return False
    return True


@contextmanager
def dev(folder: Path, port: int | None = None, *options: str, **env: str) -> Generator[Dev]:
    """Run a stack until the block ends."""
    running = Dev(folder, free_port() if port is None else port, *options, **env)
    try:
        yield running
    finally:
        running.end()
