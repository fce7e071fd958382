"""The release command: a machine of its own before any other is touched.

Source: superfly/flyctl `deploy/machines_releasecommand.go`.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from fly_emulator.flyctl.api import Api
from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.leased import Leased, WaitTimeout, exit_code
from fly_emulator.flyctl.pace import Backoff

_GROUP: Final = "fly_app_release_command"
_SHOWN: Final = 100


def is_one(found: dict[str, Any]) -> bool:
    """Say whether a machine is a release command's, left behind."""
    group = found["config"].get("metadata", {}).get("fly_process_group")
    return group == _GROUP and found["state"] not in ("destroyed", "destroying")


def run(api: Api, app: str, launch: dict[str, Any], *, wait: float, longest: float, says: str) -> None:
    """Run it to its end. Raises FlyctlError: it cannot be made, takes too long, or fails."""
    sys.stderr.write(f"Running {app} release_command: {says}\n")
    machine = _made(api, app, launch)
    machine.wait("stopped", wait, just_created=True)
    sys.stderr.write("Starting machine\n")
    machine.start()
    _ended(machine, wait, longest)
    code = _exit_code(machine, longest)
    if code:
        sys.stderr.write(
            f"Error release_command failed running on machine {machine.id} with exit code {code}.\n"
            f"Checking logs: fetching the last {_SHOWN} lines below:\n{_log(api, app, machine.id)}\n"
        )
        raise FlyctlError(f"machine {machine.id} exited with non-zero status of {code}")
    sys.stdout.write(f"✔ release_command {machine.id} completed successfully\n")


def _made(api: Api, app: str, launch: dict[str, Any]) -> Leased:
    try:
        return Leased(api, app, api.flaps("POST", f"/apps/{app}/machines", launch))
    except ApiError as error:
        raise FlyctlError(
            "error running release_command machine: error creating a release_command machine: "
            f"failed to launch VM: {error}"
        ) from error


def _ended(machine: Leased, wait: float, longest: float) -> None:
    try:
        machine.wait("started", wait)
    except ApiError as error:
        if error.status == 404:
            return  # It has ended and is gone already.
        raise
    except WaitTimeout as error:
        raise FlyctlError(
            f"error waiting for release_command machine {machine.id} to start: {error}"
        ) from error
    try:
        machine.wait("destroyed", longest)
    except WaitTimeout as error:
        raise FlyctlError(
            f"error waiting for release_command machine {machine.id} to finish running: {error}"
        ) from error


def _exit_code(machine: Leased, longest: float) -> int:
    until, pause = time.monotonic() + longest, Backoff(0.5, 2.0)
    while time.monotonic() < until:
        if (code := exit_code(machine.get())) is not None:
            return code
        pause.wait(until)
    raise FlyctlError(f"error finding the release_command machine {machine.id} exit event: timeout")


def _log(api: Api, app: str, machine: str) -> str:
    page = api.uiex("GET", f"/apps/{app}/logs?instance={machine}&next_token=")
    lines = [each["attributes"] for each in page["data"]][-_SHOWN:]
    return "\n".join(f"{each['timestamp']} {each['message']}" for each in lines)
