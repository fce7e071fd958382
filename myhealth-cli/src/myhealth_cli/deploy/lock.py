"""One deploy at a time for each app: a file's lock on this host, and a note on a machine for all others.

The file's lock ends with the process, however it ends, and with every flyctl it has started: one that
outlives a kill -9 still deploys. The note (who, until when) is metadata of the app's first machine that is
not left over (it would go with that, in the middle of a deploy); it is read and written under that machine's
lease, which the Machines API gives to one caller only. The lease itself cannot be held during a deploy:
flyctl needs it. After a kill the same host (or the same run of the CI) takes its own note over at once;
others wait until it has expired. An app without machines has nothing to be noted on: for its first deploy
there is only the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy import looks, state
from myhealth_cli.deploy.errors import FlyctlError, LockLostError, NothingChangedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from myhealth_cli.deploy.flyctl import Flyctl
    from myhealth_cli.deploy.machines_api import Lease, MachinesApi
    from myhealth_cli.deploy.state import Machine

LOCK: Final = "myhealth_lock"
LOCK_S: Final = 1200.0
"""Longer than a deploy; what somebody else waits for at most after a kill (of a build: _MORE_S longer than
that may take)."""
_MORE_S: Final = 300.0
_LEASE_WAIT_S: Final = 15.0
"""Longer than the leases of a flyctl that was killed last (13 s, its `--lease-timeout`)."""
_LEASE_PAUSE_S: Final = 1.0


@contextmanager
def file_lock(folder: Path, app: str) -> Generator[int]:
    """Hold the host's lock of an app and yield its descriptor, for children that must hold it too.

    Raises NothingChangedError when another process has it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / f"{app}.lock").open("a+", encoding="utf-8"))
        except OSError as error:
            raise NothingChangedError(
                f"{folder} cannot be written: {error.strerror}", hint="locks and records are kept there"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NothingChangedError(
                f"another process on this machine is deploying {app}",
                hint="wait until it has ended; where there is none, `fly agent stop`",
            ) from error
        try:
            yield file.fileno()
        finally:
            # Said, and not left to the end of the file: flyctl's agent, which it starts for the log of a
            # release command and leaves running, has it open, too.
            fcntl.flock(file, fcntl.LOCK_UN)


def holder(folder: Path) -> str:
    """Return who we are: a run of the CI, else this checkout, by a random name kept in `folder`."""
    if run := os.environ.get("GITHUB_RUN_ID"):
        return f"github-{run}"
    file = folder / "holder"
    with suppress(OSError):
        if name := file.read_text(encoding="ascii").strip():
            return name
    name = f"host-{secrets.token_hex(4)}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(name, encoding="ascii")
    return name


class Held:
    """A lock that is held; `renew` keeps it."""

    def __init__(self, api: MachinesApi, fly: Flyctl, app: str, who: str, ahead_s: float | None) -> None:
        self._api, self._fly, self._app, self._who = api, fly, app, who
        self._ahead_s = ahead_s
        """How far Fly's clock is ahead of ours; None: there was no machine to learn it from yet."""

    async def renew(self, seconds: float, *, each: float = 0) -> None:
        """Hold it for what is done next: `seconds` at most, and `each` for every machine.

        Fly may be away: then it stays as it is. Between two flyctls, never beside one: those carry the notes
        over as they were.
        Raises LockLostError: it had expired (a laptop that slept), and somebody else has it.
        """
        with suppress(FlyctlError, OSError):
            if found := await looks.machines(self._fly, self._app):
                if self._ahead_s is None:
                    self._ahead_s = await _ahead(self._api, self._app, bearer(self._app, found).id)
                now = time.time() + self._ahead_s
                until = now + max(LOCK_S, seconds + each * len(found) + _MORE_S)
                for other, ends in map(noted, found):
                    if other and other != self._who and ends > now:
                        raise LockLostError(f"{other} is deploying {self._app} now: our lock had expired")
                await self._api.set_metadata(
                    self._app, bearer(self._app, found).id, LOCK, f"{self._who} {until:.0f}"
                )


@asynccontextmanager
async def app_lock(api: MachinesApi, fly: Flyctl, app: str, who: str) -> AsyncGenerator[Held]:
    """Hold an app's note. Raises NothingChangedError: somebody else holds it; FlyctlError: Fly is away.

    Where there is no machine to be noted on, it is noted by `renew`, as soon as there is one.
    """
    machines = await state.machines(fly, app)
    ahead = await _take(api, fly, app, bearer(app, machines).id, who) if machines else None
    try:
        yield Held(api, fly, app, who, ahead)
    finally:
        # Bluegreen makes new machines, which carry the note as well. One that stays expires.
        with suppress(FlyctlError):
            for each in await looks.machines(fly, app):
                if noted(each)[0] == who:
                    with suppress(FlyctlError):  # one whose host is gone keeps its own, not the others'
                        await api.set_metadata(app, each.id, LOCK, None)


async def _take(api: MachinesApi, fly: Flyctl, app: str, machine: str, who: str) -> float:
    """Write the note; return how far Fly's clock is ahead of ours."""
    lease = await _lease(api, fly, app, machine, who)
    ahead = lease.at - time.time()
    try:
        await _refuse(fly, app, who, time.time() + ahead)
        await api.set_metadata(app, machine, LOCK, f"{who} {time.time() + ahead + LOCK_S:.0f}")
    finally:
        with suppress(FlyctlError):
            await api.release(app, machine, lease.nonce)
    return ahead


async def _refuse(fly: Flyctl, app: str, who: str, now: float) -> None:
    """Raise NothingChangedError where somebody else's note stands; `now` by Fly's clock."""
    for each in await state.machines(fly, app):
        other, until = noted(each)
        if other and other != who and (left := until - now) > 0:
            raise NothingChangedError(
                f"{other} is deploying {app}",
                hint=f"wait until it has ended; if it was killed, its lock ends in {left:.0f} s",
            )


async def _ahead(api: MachinesApi, app: str, machine: str) -> float:
    """Return how far Fly's clock is ahead of ours, as a lease tells. Raises FlyctlError."""
    lease = await api.lease(app, machine)
    ahead = lease.at - time.time()
    with suppress(FlyctlError):
        await api.release(app, machine, lease.nonce)
    return ahead


def bearer(app: str, machines: tuple[Machine, ...]) -> Machine:
    """Return the machine that carries the note; there is at least one."""
    known = state.App(app, machines=machines)
    return known.without(known.left_over).machines[0]


def noted(machine: Machine) -> tuple[str, float]:
    """Return who holds the note that a machine carries, and until when (seconds since 1970)."""
    who, _, until = machine.config.metadata.get(LOCK, "").partition(" ")
    return who, _number(until)


async def _lease(api: MachinesApi, fly: Flyctl, app: str, machine: str, who: str) -> Lease:
    ends = time.monotonic() + _LEASE_WAIT_S
    while True:
        try:
            return await api.lease(app, machine)
        except FlyctlError as error:
            # The flyctl of somebody who has the note holds it for as long as that deploys.
            await _refuse(fly, app, who, time.time() + api.ahead_s)
            if time.monotonic() < ends:
                await asyncio.sleep(_LEASE_PAUSE_S)
                continue
            if "answers 409" not in str(error):
                raise
            raise NothingChangedError(
                f"{app}: its first machine is being changed by somebody else ({error})",
                hint="wait a minute; `fly machine leases view` shows who",
            ) from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
