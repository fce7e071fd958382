"""A machine under a deploy's lease: what is done to it, and how flyctl waits for it.

Source: superfly/flyctl `internal/machine/leasable_machine.go`, `wait.go`, `machine_set.go`.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any, Final

from fly_emulator.flyctl.api import Api
from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.pace import Backoff, own

LEASE_S: Final = 13
"""flyctl's `--lease-timeout`; it is renewed every four seconds (a third of the rest)."""
_WAIT_S: Final = 60.0
"""The longest the API lets one wait for a state."""
_SMOKE_S: Final = 10.0


class WaitTimeout(FlyctlError):
    """What was waited for has not come in time."""


class Leased:
    """One machine. `found` is what the API has last said of it."""

    def __init__(self, api: Api, app: str, found: dict[str, Any]) -> None:
        self._api = api
        self._path = f"/apps/{app}/machines/{found['id']}"
        self.found = found
        self.nonce: str = found.get("nonce") or ""
        self.destroyed = False
        self._released = Event()

    @property
    def id(self) -> str:
        """The machine's id."""
        return self.found["id"]

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        return self.found["config"]

    @property
    def name(self) -> str:
        """Id and process group, as flyctl writes them."""
        group = self.config.get("metadata", {}).get("fly_process_group", "")
        return f"{self.id} [{group}]" if group and not group.startswith("fly_app_") else self.id

    # The lease.

    def lease(self) -> None:
        """Take the lease and keep it until `release`. Raises FlyctlError: somebody has it."""
        try:
            answer = self._api.flaps("POST", f"{self._path}/lease?ttl={LEASE_S}")
        except ApiError as error:
            raise FlyctlError(f"failed to get lease on VM {self.id}: {error}") from error
        self.nonce = answer["data"]["nonce"]
        Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        while not self._released.wait((LEASE_S - 1) / 3) and not self.destroyed:
            with suppress(FlyctlError):
                self._api.flaps("POST", f"{self._path}/lease?ttl={LEASE_S}", nonce=self.nonce)

    def release(self) -> None:
        """Give the lease back; a machine that is gone has none."""
        nonce, self.nonce = self.nonce, ""
        self._released.set()
        if not nonce or self.destroyed:
            return
        try:
            self._api.flaps("DELETE", f"{self._path}/lease", nonce=nonce)
        except FlyctlError as error:
            sys.stderr.write(f"WARN failed to release lease for machine {self.name}: {error}\n")

    # What is done to it.

    def get(self) -> dict[str, Any]:
        """Ask for it anew. Raises FlyctlError."""
        try:
            return self._api.flaps("GET", self._path)
        except ApiError as error:
            raise ApiError(f"failed to get VM {self.id}: {error}", error.status) from error

    def update(self, launch: dict[str, Any]) -> None:
        """Give it another configuration. Raises FlyctlError."""
        try:
            self.found = self._api.flaps("POST", self._path, launch, nonce=self.nonce)
        except ApiError as error:
            raise FlyctlError(f"failed to update VM {self.id}: {error}") from error

    def start(self) -> None:
        """Start it. Raises FlyctlError."""
        self._api.flaps("POST", f"{self._path}/start")

    def stop(self) -> None:
        """Stop it by its own signal. Raises FlyctlError."""
        self._api.flaps("POST", f"{self._path}/stop", {"id": self.id, "timeout": "0s"}, nonce=self.nonce)

    def cordon(self, *, undo: bool = False) -> None:
        """Let the proxy send it nothing; `undo`: let it."""
        # A green machine is uncordoned without a lease: flyctl has given it back.
        self._api.flaps(
            "POST", f"{self._path}/{'uncordon' if undo else 'cordon'}", nonce="" if undo else self.nonce
        )

    def note(self, key: str, value: str) -> None:
        """Set a pair of its metadata."""
        self._api.flaps("POST", f"{self._path}/metadata/{key}", {"value": value}, nonce=self.nonce)

    def destroy(self) -> None:
        """Kill and remove it; one that is gone already is no error."""
        if self.destroyed:
            return
        try:
            self._api.flaps("DELETE", f"{self._path}?kill=true", nonce=self.nonce)
        except ApiError as error:
            if error.status != 404:
                raise
        self.destroyed = True

    # What is waited for.

    def wait(self, state: str, timeout: float, *, just_created: bool = False) -> None:
        """Wait for a state. Raises WaitTimeout; ApiError (404) when it is gone and should not be."""
        until, pause = time.monotonic() + timeout, Backoff(0.5, 2.0)
        while (left := until - time.monotonic()) > 0:
            seconds = min(max(left, 1.0), _WAIT_S)
            try:
                self._api.flaps(
                    "GET", f"{self._path}/wait?state={state}&timeout={seconds:.0f}", seconds=seconds + 10
                )
            except ApiError as error:
                if error.status == 404 and state == "destroyed":
                    return
                if error.status == 404 and not just_created:
                    raise
                pause.wait(until)
            else:
                return
        raise WaitTimeout("timeout reached waiting for machine's state to change")

    def smoke(self) -> None:
        """Look for a while whether it crashes again and again. Raises FlyctlError."""
        until, pause = time.monotonic() + own(_SMOKE_S), Backoff(0.5, 2.0)
        while time.monotonic() < until:
            found = self.get()
            if _crashing(found):
                raise FlyctlError("the app appears to be crashing")
            if _uptime(found) > own(_SMOKE_S):
                return
            pause.wait(until)

    def healthy(self, timeout: float) -> None:
        """Wait until every configured check passes. Raises WaitTimeout."""
        if not has_checks(self.config):
            return
        until, pause = time.monotonic() + timeout, Backoff(1.0, 2.0)
        while time.monotonic() < until:
            if passing(self.get()):
                return
            pause.wait(until)
        raise WaitTimeout(
            f"timeout reached waiting for health checks to pass for machine {self.id}: "
            f'failed to get VM {self.id}: Get "{self._api.machines_url}{self._path}": '
            "net/http: request canceled"
        )


def has_checks(config: dict[str, Any]) -> bool:
    """Say whether there is anything to check, of the machine or of a service."""
    return bool(config.get("checks")) or any(each.get("checks") for each in config.get("services", []))


def passing(found: dict[str, Any]) -> bool:
    """Say whether there are results of checks, and all are good."""
    results = found.get("checks") or []
    return bool(results) and all(each["status"] == "passing" for each in results)


def exit_code(found: dict[str, Any]) -> int | None:
    """Return how the process ended since its last start; None where it has not."""
    events = found.get("events", [])
    latest = next((place for place, each in enumerate(events) if each["type"] == "start"), 0)
    for each in events[:latest]:
        if each["type"] == "exit":
            return int((each["request"].get("exit_event") or {}).get("exit_code") or 0)
    return None


def _crashing(found: dict[str, Any]) -> bool:
    for each in found.get("events", []):
        if each["type"] == "exit":
            request = each.get("request") or {}
            ended = request.get("exit_event") or {}
            return (
                not ended.get("requested_stop")
                and bool(ended.get("restarting"))
                and request.get("restart_count", 0) > 1
                and ended.get("exit_code", 0) != 0
            )
    return False


def _uptime(found: dict[str, Any]) -> float:
    """Return the seconds since its last start, 0 when it has ended since, or was only launched."""
    for each in found.get("events", []):
        if each["type"] in ("exit", "launch"):
            return 0.0
        if each["type"] == "start":
            return datetime.now(UTC).timestamp() - each["timestamp"] / 1000
    return 0.0
