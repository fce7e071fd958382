"""Data files that a named person must have read and signed before production uses them.

`agent-backend check-config` refuses production until then; consent texts (`consents.py`) likewise. Such a
file is JSON and says at its top `title`, `version`, `reviewed_by` and `reviewed_on`. The last two are
empty until somebody with the competence for it (a clinician, counsel) signs this version by name; whoever
changes a file empties them again.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

FILES = (
    "guardrails.json",
    "safety/data/red_flags.json",
    "safety/data/answers.json",
    "safety/data/texts.json",
    "safety/data/helplines.json",
)
"""Paths inside the package; a file joins by being named here."""

_PACKAGE = Path(__file__).parent


class Reviewable(msgspec.Struct, frozen=True, kw_only=True):
    """One file and who has signed which version of it."""

    file: str = ""
    title: str
    version: str
    reviewed_by: str
    reviewed_on: str

    @property
    def signed(self) -> bool:
        """Whether a named person has signed this version, with a date."""
        return bool(self.reviewed_by.strip() and self.reviewed_on.strip())


def reviewable(package: Path = _PACKAGE) -> list[Reviewable]:
    """Return every file that needs a signature. Raises msgspec.ValidationError for one without the fields."""
    heads = [(name, msgspec.json.decode((package / name).read_bytes(), type=Reviewable)) for name in FILES]
    return [msgspec.structs.replace(head, file=name) for name, head in heads]


def unsigned(package: Path = _PACKAGE) -> list[str]:
    """Return the files that nobody has signed."""
    return [each.file for each in reviewable(package) if not each.signed]
