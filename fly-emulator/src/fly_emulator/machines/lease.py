"""Leases: who may change a machine for a while.

Source: superfly/docs machines-resource ("Create a Machine lease"), superfly/fly-go `flaps_machines.go`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec

from fly_emulator.errors import StateError
from fly_emulator.machines import ids

DEFAULT_TTL = 30
"""Seconds. Fly documents none."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A hold on a machine, until `expires_at` (seconds since 1970)."""

    nonce: str
    expires_at: float
    owner: str
    description: str
    version: str

    def public(self) -> dict[str, object]:
        """Return the API's form."""
        return {**msgspec.to_builtins(self), "expires_at": int(self.expires_at)}


class LeaseHeld(StateError):
    """Somebody else holds the machine."""

    def __init__(self, machine_id: str, lease: Lease) -> None:
        until = datetime.fromtimestamp(lease.expires_at, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
        super().__init__(
            f"machine ID {machine_id} lease currently held by {lease.owner}, expires at {until}", status=409
        )


class Leases:
    """The leases of a fleet; they end with the emulator."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    def current(self, machine_id: str) -> Lease | None:
        """Return the lease that holds now."""
        lease = self._leases.get(machine_id)
        if lease is not None and lease.expires_at <= time.time():
            del self._leases[machine_id]
            return None
        return lease

    def check(self, machine_id: str, nonce: str | None) -> None:
        """Refuse a change by anyone but the holder. Raises LeaseHeld."""
        lease = self.current(machine_id)
        if lease is not None and lease.nonce != nonce:
            raise LeaseHeld(machine_id, lease)

    def acquire(
        self, machine_id: str, *, ttl: float, nonce: str | None, version: str, description: str = ""
    ) -> Lease:
        """Take the lease, or refresh the one whose nonce is given. Raises LeaseHeld."""
        self.check(machine_id, nonce)
        held = self.current(machine_id)
        lease = self._leases[machine_id] = Lease(
            nonce=ids.nonce() if held is None else held.nonce,
            expires_at=time.time() + ttl,
            owner="emulator@localhost",
            description=description,
            version=version,
        )
        return lease

    def release(self, machine_id: str, nonce: str | None) -> None:
        """Give it back. Raises StateError: 404 when there is none, LeaseHeld with another's nonce."""
        if self.current(machine_id) is None:
            raise StateError("lease not found", status=404)
        self.check(machine_id, nonce)
        del self._leases[machine_id]

    def forget(self, machine_id: str) -> None:
        """Drop the lease of a machine that is gone."""
        self._leases.pop(machine_id, None)
