"""What the operator of the emulator decides about machines; the knobs stand where Fly documents nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fly_emulator.machines.environment import Image
from fly_emulator.machines.freeze import FreezerName


class MachineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are real ones unless said otherwise."""

    image: Image = Image()
    """What every image reference stands for, unless `images` names it."""
    images: dict[str, Image] = {}
    find_image: Callable[[str], Image] | None = None
    """Asked at create and update instead, for good. Raises StateError (400): it cannot be pulled."""
    passed: dict[str, str] = {}
    """Variables of the host that machines get; the config's win over them."""
    secrets: dict[str, str] = {}
    """As `fly secrets`: they win over the config's `env`."""
    freezer: FreezerName = "signal"
    cut_connections: bool = True
    """On suspend, where the host can."""
    memory_limit: bool = True
    """Where the host can."""
    restart_backoff: float = 1.0
    """Before a process that ended by itself is started again. Fly documents none."""
    restart_window: float = 300.0
    """In which `max_retries` restarts are allowed (superfly/docs machine-restart-policy)."""
    check_fast: float = 0.02
    """Between checks from a start to the first pass."""
    probe_ports: bool = True
    """A service without checks is healthy when its port accepts; else as soon as the machine is started."""
    replace_seconds: float = 0.0
    """How long an update stays in `replacing`; Fly swaps the image for some seconds."""
    events_kept: int = 20
    reply_grace: float = 0.05
    """Between the API's reply to stop or suspend and the deed: a machine may ask it for itself."""

    def image_of(self, reference: str) -> Image:
        """Return what an image reference stands for."""
        return self.images.get(reference, self.image)
