"""One deploy at a time for each app: a file's lock on this host, and a note on a machine for all others.

The file's lock ends with the process, however it ends, and with every flyctl it has started: one that
outlives a kill -9 still deploys. The note (who, until when) is metadata of the app's first machine; it is
read and written under that machine's lease, which the Machines API gives to one caller only. The lease itself
cannot be held during a deploy: flyctl needs it. After a kill the same host (or the same run of the CI) takes
its own note over at once; others wait until it has expired. An app without machines has nothing to be noted
on: for its first deploy there is only the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from myhealth_cli.deploy.machines_api import MachinesApi

LOCK: Final = "myhealth_lock"
LOCK_S: Final = 1200.0
"""Longer than a deploy; what somebody else waits for at most after a kill."""
_LEASE_TRIES: Final = 5
_LEASE_PAUSE_S: Final = 1.0


@contextmanager
def file_lock(folder: Path, app: str) -> Generator[int]:
    """Hold the host's lock of an app and yield its descriptor, for children that must hold it too.

    Raises NothingChangedError when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{app}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NothingChangedError(
                f"another process on this machine is deploying {app}", hint="wait until it has ended"
            ) from error
        yield file.fileno()


def holder(folder: Path) -> str:
    """Return who we are: a run of the CI, else this checkout, by a random name kept in `folder`."""
    if run := os.environ.get("GITHUB_RUN_ID"):
        return f"github-{run}"
    file = folder / "holder"
    with suppress(OSError):
        if name := file.read_text(encoding="ascii").strip():
            return name
    folder.mkdir(parents=True, exist_ok=True)
    name = f"host-{secrets.token_hex(4)}"
    file.write_text(name, encoding="ascii")
    return name


@asynccontextmanager
async def app_lock(api: MachinesApi, app: str, machine: str | None, who: str) -> AsyncGenerator[None]:
    """Hold the note of an app on its first machine. Raises NothingChangedError: somebody else holds it."""
    if machine is None:
        yield
        return
    await _take(api, app, machine, who)
    try:
        yield
    finally:
        # The machine may be gone (bluegreen), and then so is the note; one that stays expires.
        with suppress(FlyctlError):
            await api.set_metadata(app, machine, LOCK, None)


async def _take(api: MachinesApi, app: str, machine: str, who: str) -> None:
    nonce = await _lease(api, app, machine)
    try:
        noted, _, until = (await api.metadata(app, machine)).get(LOCK, "").partition(" ")
        left = _number(until) - time.time()
        if noted and noted != who and left > 0:
            raise NothingChangedError(
                f"{noted} is deploying {app}",
                hint=f"wait until it has ended; if it was killed, its lock ends in {left:.0f} s",
            )
        await api.set_metadata(app, machine, LOCK, f"{who} {time.time() + LOCK_S:.0f}")
    finally:
        with suppress(FlyctlError):
            await api.release(app, machine, nonce)


async def _lease(api: MachinesApi, app: str, machine: str) -> str:
    for left in reversed(range(_LEASE_TRIES)):
        try:
            return await api.lease(app, machine)
        except FlyctlError as error:
            if not left:
                raise NothingChangedError(
                    f"{app}: its first machine is being changed by somebody else ({error})",
                    hint="wait a minute; `fly machine leases view` shows who",
                ) from error
            await asyncio.sleep(_LEASE_PAUSE_S)
    raise AssertionError("unreachable: the last try returns or raises")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
