"""The seam between the machines and whoever sends them work (the edge, autostop, the Machines API).

`fleet.Fleet` and `machine.Machine` are the implementation; these protocols are what the edge relies on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol, TypeAlias

from fly_emulator.machine_config import MachineConfig

State: TypeAlias = Literal[
    "created",
    "creating",
    "starting",
    "started",
    "stopping",
    "stopped",
    "restarting",
    "suspending",
    "suspended",
    "updating",
    "replacing",
    "replaced",
    "destroying",
    "destroyed",
    "failed",
    "launch_failed",
    "migrated",
]


class Address(Protocol):
    """Where a machine's process really listens for one of its internal ports."""

    host: str
    port: int


class MachineView(Protocol):
    """A machine as the edge sees it. All times are seconds on the event loop's clock."""

    id: str
    name: str
    region: str

    @property
    def state(self) -> State:
        """Where it is in its life."""
        ...

    @property
    def config(self) -> MachineConfig:
        """What it is made of; a deploy replaces it."""
        ...

    @property
    def cordoned(self) -> bool:
        """Taken out of routing by the operator (`cordon`)."""
        ...

    def healthy(self, internal_port: int) -> bool:
        """Say whether it is started and every check of this service has passed since the start."""
        ...

    def address(self, internal_port: int) -> tuple[str, int]:
        """Return host and port where the process listens for this internal port."""
        ...

    async def wait_healthy(self, internal_port: int, timeout: float) -> bool:  # noqa: ASYNC109 - its own bound
        """Wait until `healthy`; False when the time is over or the machine left `starting`/`started`."""
        ...


class FleetView(Protocol):
    """All machines of one app."""

    app: str
    primary_region: str

    def machines(self) -> Sequence[MachineView]:
        """Return the machines that are not destroyed, oldest first."""
        ...

    def get(self, machine_id: str) -> MachineView | None:
        """Find one."""
        ...

    async def start(self, machine_id: str) -> None:
        """Start a created, stopped or suspended machine; one that runs stays. Raises StateError."""
        ...

    async def stop(self, machine_id: str) -> None:
        """Signal it, SIGKILL after its timeout, and return when it is stopped. Raises StateError."""
        ...

    async def suspend(self, machine_id: str) -> None:
        """Freeze it and cut its connections; falls back to stop as Fly does. Raises StateError."""
        ...

    def changes(self) -> AsyncGenerator[None]:
        """Yield after any change of a machine's state, health or configuration."""
        ...
