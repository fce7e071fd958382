"""What a machine's version is given for good when it is created or updated: its image and the app's secrets.

As on Fly a later push to the tag or a later `fly secrets set --stage` reaches a machine with its next update,
not with a restart (flyctl's words: "Deploy or update machines in this app for the secrets to take effect").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from fly_emulator.machines.environment import Image


class Provision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one version of a machine holds."""

    image: Image | None = None
    """None: what the emulator's settings say at each start."""
    secrets: int = 0
    """A version of the app's secrets."""


class Secrets(Protocol):
    """The secrets of an app, by version."""

    @property
    def version(self) -> int:
        """The newest version."""
        ...

    def values(self, version: int) -> Mapping[str, str]:
        """Return what a version holds."""
        ...


class FixedSecrets:
    """The same at all times: what the emulator was started with."""

    version = 0

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def values(self, version: int) -> Mapping[str, str]:
        """Return all; there is one version."""
        del version
        return self._values
