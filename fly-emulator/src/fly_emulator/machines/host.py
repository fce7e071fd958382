"""What a machine needs of the fleet it is in; `fleet.Fleet` is the implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import aiohttp

from fly_emulator.log import Log
from fly_emulator.machine_config import MachineConfig
from fly_emulator.machines.broadcast import Broadcast
from fly_emulator.machines.provision import Provision, Secrets
from fly_emulator.machines.record import Record
from fly_emulator.machines.settings import MachineSettings


class Host(Protocol):
    """What a machine needs of the fleet it is in."""

    app: str
    primary_region: str
    settings: MachineSettings
    log: Log
    changed: Broadcast

    secrets: Secrets

    def provision(self, config: MachineConfig) -> Provision:
        """Return what a new version of a machine is given. Raises StateError (400): no such image."""
        ...

    def save(self) -> None:
        """Write the state file."""
        ...

    def client(self) -> aiohttp.ClientSession:
        """Return the session that checks use."""
        ...

    async def ready(self, machine_id: str) -> None:
        """Prepare what a machine needs before it starts."""
        ...

    def socket_path(self, machine_id: str) -> Path | None:
        """Say where the machine finds its API."""
        ...

    def output(self, record: Record, line: str) -> None:
        """Take a line that the machine printed."""
        ...
