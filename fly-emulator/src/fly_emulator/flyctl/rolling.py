"""Updates in place: rolling and immediate, and the first machines of a group.

Source: superfly/flyctl `deploy/machines_deploymachinesapp.go`: updateUsingRollingStrategy,
updateEntriesGroup, waitForMachine, spawnMachineInGroup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, Final, NamedTuple, Protocol

from fly_emulator.flyctl.api import Api
from fly_emulator.flyctl.commands import write
from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.leased import Leased, WaitTimeout

_STOPPED_AT_ONCE: Final = 30


class Entry(NamedTuple):
    """A machine and what its update asks for."""

    machine: Leased
    launch: dict[str, Any]

    @property
    def skipped(self) -> bool:
        """Whether it is updated without being started."""
        return bool(self.launch.get("skip_launch"))


class Waits(Protocol):
    """What of a deploy's options matters here."""

    @property
    def strategy(self) -> str:
        """The strategy."""
        ...

    @property
    def wait(self) -> float:
        """Seconds to wait for a state, or for checks."""
        ...

    @property
    def smoke(self) -> bool:
        """Whether to look for crashes."""
        ...

    @property
    def max_unavailable(self) -> float:
        """Below 1 a share of the machines, else a number of them."""
        ...


def spawn(api: Api, app: str, launch: dict[str, Any], waits: Waits) -> None:
    """Make a machine and see that it is well; it stays where it is not. Raises FlyctlError."""
    try:
        made = Leased(api, app, api.flaps("POST", f"/apps/{app}/machines", launch))
    except ApiError as error:
        raise FlyctlError(f"error creating a new machine: failed to launch VM: {error}") from error
    write(f"> Machine {made.name} was created")
    try:
        if waits.strategy == "immediate":
            return
        if waits.smoke:
            _smoke(api, app, made)
        made.wait("started", waits.wait, just_created=True)
        made.healthy(waits.wait)
    finally:
        made.release()
    write(f"✔ Machine {made.name} update finished: success")


def immediate(entries: Sequence[Entry]) -> None:
    """Update all, and look at none."""
    for each in entries:
        _update(each)
        write(f"✔ Machine {each.machine.name} update succeeded")


def rolling(api: Api, app: str, entries: Sequence[Entry], waits: Waits) -> None:
    """Update one machine, then the others in groups; stop at the first that fails, which stays as it is."""

    def one(entry: Entry) -> None:
        try:
            _update(entry)
            _look(api, app, entry, waits)
        except FlyctlError as error:
            write(f"✖ Machine {entry.machine.name} update failed: {error}")
            raise
        write(f"✔ Machine {entry.machine.name} update succeeded")

    ordered = sorted(entries, key=lambda each: each.machine.id)
    warm = [each for each in ordered if each.machine.found["state"] == "started"]
    cold = [each for each in ordered if each.machine.found["state"] != "started"]
    share = waits.max_unavailable
    at_once = int(share) if share >= 1 else math.ceil(len(warm) * share)
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(_one_then_the_rest, cold, one, _STOPPED_AT_ONCE),
            pool.submit(_one_then_the_rest, warm, one, at_once),
        ]
    for each in both:
        each.result()


def _one_then_the_rest(entries: Sequence[Entry], one: Callable[[Entry], None], at_once: int) -> None:
    if not entries:
        return
    one(entries[0])
    failed = Event()

    def unless_failed(entry: Entry) -> None:
        if failed.is_set():
            write(f"✖ Machine {entry.machine.name} update canceled")
            return
        try:
            one(entry)
        except FlyctlError:
            failed.set()
            raise

    with ThreadPoolExecutor(max(at_once, 1)) as pool:
        rest = [pool.submit(unless_failed, each) for each in entries[1:]]
    for each in rest:
        each.result()


def _update(entry: Entry) -> None:
    write(f"> Updating {entry.machine.name}")
    entry.machine.update(entry.launch)


def _look(api: Api, app: str, entry: Entry, waits: Waits) -> None:
    """See that an updated machine is well; one that was not started is not looked at (flyctl#4707)."""
    if entry.skipped:
        return
    entry.machine.wait("started", waits.wait, just_created=True)
    if waits.smoke:
        _smoke(api, app, entry.machine)
    entry.machine.healthy(waits.wait)


def _smoke(api: Api, app: str, machine: Leased) -> None:
    write(f"> Checking that {machine.name} is up and running")
    try:
        machine.smoke()
    except WaitTimeout:
        raise
    except FlyctlError as error:
        page = api.uiex("GET", f"/apps/{app}/logs?instance={machine.id}&next_token=")
        since = machine.found["updated_at"]
        lines = [each["attributes"] for each in page["data"]]
        said = "\n".join(each["message"] for each in lines if each["timestamp"] >= since)
        raise FlyctlError(
            f"smoke checks for {machine.id} failed: {error}",
            f"Smoke checks for {machine.id} failed: {error}\nCheck its logs: here's the last lines below, or "
            f"run 'fly logs -i {machine.id}':\n{said}",
        ) from error
