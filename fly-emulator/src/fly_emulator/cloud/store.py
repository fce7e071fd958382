"""The cloud's state file. It holds the values of secrets: only its owner can read it."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

import msgspec

from fly_emulator.cloud.records import CloudFile, Organization
from fly_emulator.errors import EmulatorError

PERSONAL = Organization(id="org-personal", number=1, slug="personal", name="Emulator", personal=True)


class Store:
    """Reads and replaces the file."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "cloud.json"
        self.state = self._load()

    def _load(self) -> CloudFile:
        if not self._path.exists():
            return CloudFile(key=token_hex(16), organizations=[PERSONAL])
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=CloudFile)
        except msgspec.DecodeError as error:
            raise EmulatorError(
                f"{self._path} is damaged: {error}", hint="remove it to begin anew"
            ) from error

    def number(self) -> int:
        """Return a new internal number."""
        self.state.numbers += 1
        return self.state.numbers

    def save(self) -> None:
        """Replace the file in one step, so that a crash leaves the old or the new one."""
        write_private(self._path, msgspec.json.encode(self.state))


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; only its owner can read it."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_bytes(content)
    draft.replace(path)
