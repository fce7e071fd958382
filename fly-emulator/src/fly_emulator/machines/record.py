"""What is known of a machine and outlives the emulator: its identity, configuration and history."""

from __future__ import annotations

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.machine_config import MachineConfig
from fly_emulator.machines import ids
from fly_emulator.machines.events import Event, EventRequest, EventSource, EventType, event
from fly_emulator.machines.processes import Identity
from fly_emulator.machines.provision import Provision
from fly_emulator.ports import State


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration a machine had; its id is the machine's `instance_id` of that time."""

    id: str
    config: MachineConfig
    created_at: str
    provision: Provision = Provision()


class Record(msgspec.Struct, kw_only=True):
    """One machine, as it is written to the state file."""

    id: str
    name: str
    region: str
    private_ip: str
    state: State
    config: MachineConfig
    versions: list[Version]
    """Oldest first; the last one is in force."""
    created_at: str
    updated_at: str
    cordoned: bool = False
    events: list[Event] = []
    """Newest first."""
    process: Identity | None = None
    """What runs now, so that the next emulator can end it if this one dies."""

    @property
    def instance_id(self) -> str:
        """The version in force."""
        return self.versions[-1].id

    @property
    def provision(self) -> Provision:
        """What the version in force was given."""
        return self.versions[-1].provision

    def adopt(self, config: MachineConfig, provision: Provision) -> None:
        """Put a new configuration in force."""
        self.config = config
        self.versions.append(
            Version(id=ids.ulid(), config=config, created_at=timestamp(), provision=provision)
        )

    def add(
        self,
        kind: EventType,
        status: State,
        source: EventSource,
        *,
        keep: int,
        request: EventRequest | None = None,
    ) -> None:
        """Note what happened, and forget the oldest."""
        self.events = [event(kind, status, source, request=request), *self.events][:keep]


def new_record(
    config: MachineConfig, provision: Provision, *, name: str | None, region: str, cordoned: bool
) -> Record:
    """Return a machine that is created and has never run."""
    moment = timestamp()
    return Record(
        id=ids.machine_id(),
        name=name or ids.machine_name(),
        region=region,
        private_ip=ids.private_ip(),
        state="created",
        config=config,
        versions=[Version(id=ids.ulid(), config=config, created_at=moment, provision=provision)],
        created_at=moment,
        updated_at=moment,
        cordoned=cordoned,
        events=[event("launch", "created", "user")],
    )
