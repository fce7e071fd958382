"""Images: names for local commands, in a file that `fly-emulator image add` writes and the server reads.

A reference that is not there cannot be pulled, as on Fly. One that is marked to pull another runs that other
one though the machine names this one: a pull that failed and looked successful. What tells them apart is the
digest, in the machine's `image_ref`.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from fly_emulator.cloud.store import write_private
from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.machines.environment import Image

SIZE: Final = 1_048_576
"""Bytes that every image is said to have."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands for an image."""

    command: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    """Stays before the command when fly.toml or a release_command names another one."""
    cwd: str | None = None
    env: dict[str, str] = {}
    pulls: str | None = None
    """Another reference, that is run instead."""

    @property
    def digest(self) -> str:
        """The same for the same commands, directory and variables."""
        content = msgspec.json.encode([self.command, self.entrypoint, self.cwd, sorted(self.env.items())])
        return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the registry shows it."""

    reference: str
    digest: str


class Images:
    """The images of a state folder."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "images.json"

    def all(self) -> dict[str, Entry]:
        """Return every image by its reference. Raises EmulatorError: a damaged file."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Entry])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise EmulatorError(
                f"{self._path} is damaged: {error}", hint="remove it and add the images again"
            ) from error

    def add(self, reference: str, entry: Entry) -> str:
        """Add an image, or replace it as a push does; return its digest. Raises EmulatorError."""
        with self._alone():
            known = self.all()
            if entry.pulls is not None and entry.pulls not in known:
                raise EmulatorError(
                    f"there is no image {entry.pulls} to pull in its place", hint=f"add {entry.pulls} first"
                )
            write_private(self._path, msgspec.json.encode({**known, reference: entry}))
        return entry.digest

    def remove(self, reference: str) -> None:
        """Forget an image; machines that have it keep it. Raises EmulatorError."""
        with self._alone():
            known = self.all()
            if known.pop(reference, None) is None:
                raise EmulatorError(f"there is no image {reference}", hint="fly-emulator image list")
            write_private(self._path, msgspec.json.encode(known))

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep others out who change the file at the same time: builds push side by side."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def find(self, reference: str) -> Found | None:
        """Look a reference up, with or without a digest behind it, as a registry does."""
        name, _, wanted = reference.partition("@")
        entry = self.all().get(name)
        if entry is None or (wanted and wanted != entry.digest):
            return None
        return Found(reference=name, digest=entry.digest)

    def pull(self, reference: str) -> Image:
        """Return what a machine runs that names this image. Raises StateError (400)."""
        found = self.find(reference)
        if found is None:
            raise StateError(
                f"invalid_argument: unable to get image config: failed to get manifest {reference}: "
                "request failed: not found",
                status=400,
            )
        entries = self.all()
        entry = entries[found.reference]
        ran = entries.get(entry.pulls, entry) if entry.pulls else entry
        return Image(entrypoint=ran.entrypoint, cmd=ran.command, cwd=ran.cwd, env=ran.env, digest=ran.digest)
