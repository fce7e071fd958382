"""Bluegreen: new machines beside the old ones, checks, the cut over, the old ones' end.

Source: superfly/flyctl `deploy/strategy_bluegreen.go`. Without its retries: before the emulator a refusal is
one. Its two waits of ten seconds are flyctl's own (`pace`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex
from typing import Any, Final

from fly_emulator.flyctl.api import Api
from fly_emulator.flyctl.errors import FlyctlError, Interrupted
from fly_emulator.flyctl.leased import Leased, WaitTimeout, has_checks, passing
from fly_emulator.flyctl.pace import own
from fly_emulator.flyctl.rolling import Entry
from fly_emulator.machine_config import duration_seconds

_MAY: Final = "query ($appName: String!) { canPerformBluegreenDeployment(name: $appName) }"
_TAG: Final = "fly_bluegreen_deployment_tag"
_LAUNCH: Final = "fly_flyctl_bluegreen_launch_id"
_BETWEEN_S: Final = 10.0
_GRACE_S: Final = 1.0
_INTERVAL_S: Final = 60.0


class BlueGreen:
    """One deploy over the machines of `blue`; their leases are held."""

    def __init__(self, api: Api, app: str, blue: list[Entry], wait: float) -> None:
        self._api, self._app, self._blue, self._wait = api, app, blue, wait
        self._green: list[Entry] = []
        self._serving = False

    def deploy(self) -> None:
        """Deploy; until the new machines serve, a failure removes them. Raises FlyctlError, Interrupted."""
        try:
            self._raise_green()
            self._cut_over()
        except (FlyctlError, Interrupted):
            if not self._serving:
                self._roll_back()
            raise

    def _raise_green(self) -> None:
        if not self._api.graphql(_MAY, appName=self._app)["canPerformBluegreenDeployment"]:
            raise FlyctlError("app can't undergo bluegreen deployment due to org limits")
        _say("\nVerifying if app can be safely deployed ")
        if len({_image(each.machine.found) for each in self._blue}) > 1:
            raise FlyctlError("found multiple image versions")
        if not any(has_checks(each.launch["config"]) for each in self._blue):
            raise FlyctlError("app not in valid state for bluegreen deployments")
        _say("\nCreating green machines")
        self._step("failed to create green machines", self._create)
        time.sleep(own(0.3))
        _say("\nWaiting for all green machines to start")
        self._step("could not get all green machines into started state", self._started)
        _say("\nWaiting for all green machines to be healthy")
        self._step("could not get all green machines to be healthy", self._healthy)
        _say("\nMarking green machines as ready")
        self._step("failed to mark green machines as ready", self._ready)

    def _cut_over(self) -> None:
        """Note, ten seconds, cordon, ten seconds, stop, destroy: flyctl's order."""
        self._serving = True
        blue = [each.machine for each in self._blue]
        _say("\nCheckpointing deployment, this may take a few seconds...")
        _all(lambda each: each.note(_TAG, "safe_to_destroy"), blue)
        _say("\nWaiting before cordoning all blue machines")
        time.sleep(own(_BETWEEN_S))
        _all(lambda each: each.cordon(), blue)
        _say("\nWaiting before stopping all blue machines")
        time.sleep(own(_BETWEEN_S))
        _say("\nStopping all blue machines")
        _all(lambda each: each.stop(), blue)
        _say("\nWaiting for all blue machines to stop")
        self._step("could not get all blue machines into stopped state", self._stopped)
        _say("\nDestroying all blue machines")
        _all(lambda each: each.destroy(), blue)
        _say("\nDeployment Complete")

    def _step(self, failure: str, do: Callable[[], None]) -> None:
        try:
            do()
        except FlyctlError as error:
            raise FlyctlError(f"{error}\n{failure}", error.more) from error

    def _create(self) -> None:
        tag, promoted = str(int(time.time())), self._promoted()
        for place, each in enumerate(self._blue):
            launch: dict[str, Any] = {**each.launch, "skip_service_registration": True}
            if place in promoted:
                launch["skip_launch"] = False
            metadata = {**launch["config"]["metadata"], _TAG: tag, _LAUNCH: token_hex(13).upper()}
            launch["config"] = {**launch["config"], "metadata": metadata}
            made = Leased(
                self._api, self._app, self._api.flaps("POST", f"/apps/{self._app}/machines", launch)
            )
            self._green.append(Entry(made, launch))
            made.release()
            _say(f"  Created machine {made.name}")

    def _promoted(self) -> set[int]:
        """Return which sleeping machines are started all the same: one of each group that has checks."""
        chosen: dict[str, int] = {}
        awake: set[str] = set()
        for place, each in enumerate(self._blue):
            group = each.launch["config"]["metadata"].get("fly_process_group", "app")
            if not each.skipped:
                awake.add(group)
            elif has_checks(each.launch["config"]):
                chosen.setdefault(group, place)
        return {place for group, place in chosen.items() if group not in awake}

    def _started(self) -> None:
        try:
            _all(lambda each: each.wait("started", self._wait, just_created=True), self._awake())
        except WaitTimeout as error:
            raise FlyctlError("wait timeout") from error

    def _healthy(self) -> None:
        until = time.monotonic() + self._wait
        _all(lambda each: _passes(each, until), (each for each in self._awake() if has_checks(each.config)))

    def _ready(self) -> None:
        def mark(machine: Leased) -> None:
            machine.cordon(undo=True)
            _say(f"  Machine {machine.name} now ready")

        _all(mark, (each.machine for each in self._green))

    def _stopped(self) -> None:
        _all(lambda each: each.wait("stopped", self._wait), (each.machine for each in self._blue))

    def _awake(self) -> list[Leased]:
        return [each.machine for each in self._green if not each.skipped]

    def _roll_back(self) -> None:
        _say("\nRolling back failed deployment")
        for each in self._green:
            each.machine.destroy()
            _say(f"  Deleted machine {each.machine.name}")


def _passes(machine: Leased, until: float) -> None:
    checks = [
        *machine.config.get("checks", {}).values(),
        *(check for service in machine.config.get("services", []) for check in service.get("checks", [])),
    ]
    interval = min(duration_seconds(check.get("interval", "10s")) for check in checks)
    grace = min(duration_seconds(check.get("grace_period", "1s")) for check in checks)
    time.sleep(min(grace, _GRACE_S))
    while not passing(machine.get()):
        if time.monotonic() > until:
            raise FlyctlError("wait timeout")
        time.sleep(max(0.0, min(interval, _INTERVAL_S, until - time.monotonic() + 0.01)))


def _all(do: Callable[[Leased], None], machines: Iterable[Leased]) -> None:
    """Do it to all at once; raise what went wrong first."""
    found = list(machines)
    if not found:
        return
    with ThreadPoolExecutor(len(found)) as pool:
        done = [pool.submit(do, each) for each in found]
    for each in done:
        each.result()


def _image(found: dict[str, Any]) -> str:
    reference = found["image_ref"]
    return f"{reference['repository']}:{reference.get('tag', '')}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
