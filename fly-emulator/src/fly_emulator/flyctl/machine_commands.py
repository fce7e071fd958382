"""`machine start`, `stop`, `cordon`, `uncordon`, `destroy`: each machine under its lease.

Source: superfly/flyctl `internal/command/machine/`, `internal/machine/lease.go`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from fly_emulator.flyctl.api import Api
from fly_emulator.flyctl.commands import app_name, session, write
from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.shapes import seconds as duration
from fly_emulator.flyctl.words import Call

_LEASE_S: Final = 120


class Held(NamedTuple):
    """A machine whose lease we have."""

    api: Api
    id: str
    path: str
    nonce: str
    state: str

    def ask(self, method: str, what: str = "", body: Any = None) -> None:
        """Ask something of it under the lease."""
        self.api.flaps(method, self.path + what, body, nonce=self.nonce)


def start(call: Call) -> None:
    """Run `machine start`."""
    with _held(call) as machines:
        for each in machines:
            try:
                each.ask("POST", "/start")
            except ApiError as error:
                raise FlyctlError(
                    f"could not start machine {each.id}: failed to start VM {each.id}: {error}"
                ) from error
            write(f"{each.id} has been started")


def stop(call: Call) -> None:
    """Run `machine stop`; with `--wait-timeout` it waits until they are."""
    seconds = duration(call.flags["wait-timeout"] or "0s")
    signal = {"signal": call.flags["signal"].upper()} if call.flags["signal"] else {}
    with _held(call) as machines:
        for each in machines:
            body = {"id": each.id, "timeout": f"{call.flags['timeout'] or 0}s", **signal}
            write(f"Sending kill signal to machine {each.id}...")
            try:
                each.ask("POST", "/stop", body)
                if seconds:
                    wait = f"{each.path}/wait?state=stopped&timeout={seconds:.0f}"
                    each.api.flaps("GET", wait, seconds=seconds + 10)
            except ApiError as error:
                raise FlyctlError(f"could not stop machine {each.id}: {error}") from error
            write(f"{each.id} has been successfully stopped")


def cordon(call: Call) -> None:
    """Run `machine cordon`: the proxy sends it nothing new."""
    _mark(call, "cordon", "Activating")


def uncordon(call: Call) -> None:
    """Run `machine uncordon`."""
    _mark(call, "uncordon", "Deactivating")


def _mark(call: Call, verb: str, word: str) -> None:
    with _held(call) as machines:
        for each in machines:
            write(f"{word} cordon on machine {each.id}...")
            each.ask("POST", f"/{verb}")
            write("done!")


def destroy(call: Call) -> None:
    """Run `machine destroy`; one that runs only with `--force`."""
    force = call.flags["force"]
    with _held(call) as machines:
        for each in machines:
            if each.state == "destroyed":
                raise FlyctlError(f"machine {each.id} has already been destroyed")
            if not force and each.state == "started":
                raise FlyctlError(
                    f"machine {each.id} currently started, either stop first or use --force flag"
                )
            if not force and each.state not in ("stopped", "suspended"):
                raise FlyctlError(
                    f"machine {each.id} is in a {each.state} state and cannot be destroyed since it is not "
                    "stopped or suspended, either stop first or use --force flag"
                )
            write(f"machine {each.id} was found and is currently in {each.state} state, destroying...")
            try:
                each.ask("DELETE", f"?kill={str(force).lower()}")
            except ApiError as error:
                raise FlyctlError(f"could not destroy machine {each.id}: {error}") from error
            write(f"{each.id} has been destroyed")


@contextmanager
def _held(call: Call) -> Generator[list[Held]]:
    """Look the machines up and hold their leases. Raises FlyctlError."""
    app, api = app_name(call), session(call)
    if not call.arguments:
        raise FlyctlError("a machine ID must be specified when not running interactively")
    states = {each: _state(api, app, each) for each in call.arguments}
    held: list[Held] = []
    try:
        for each, state in states.items():
            path = f"/apps/{app}/machines/{each}"
            try:
                answer = api.flaps("POST", f"{path}/lease?ttl={_LEASE_S}")
            except ApiError as error:
                raise FlyctlError(
                    f"failed to obtain lease: failed to get lease on VM {each}: {error}"
                ) from error
            held.append(Held(api, each, path, answer["data"]["nonce"], state))
        yield held
    finally:
        for machine in held:
            try:
                machine.ask("DELETE", "/lease")
            except FlyctlError as error:
                write(f"failed to release lease for machine {machine.id}: {error}")


def _state(api: Api, app: str, machine: str) -> str:
    try:
        return api.flaps("GET", f"/apps/{app}/machines/{machine}")["state"]
    except ApiError as error:
        if "machine not found" in str(error):
            raise FlyctlError(f"machine {machine} was not found in app '{app}'") from error
        raise FlyctlError(f"could not get machine {machine}: {error}") from error
