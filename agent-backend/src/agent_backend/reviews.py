"""Data files that a named person must have read and signed before production uses them.

Such a file is JSON and says at its top `title`, `version`, `reviewed_by` and `reviewed_on`. The last two are
empty until somebody with the competence for it (a clinician, counsel) signs this version by name; whoever
changes a file empties them again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from agent_backend.errors import OperatorError

FILES = (
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


class Unreviewed(OperatorError):
    """Production would use texts or thresholds that nobody has signed."""


def reviewable(package: Path = _PACKAGE) -> list[Reviewable]:
    """Return every file that needs a signature. Raises msgspec.ValidationError for one without the fields."""
    heads = [(name, msgspec.json.decode((package / name).read_bytes(), type=Reviewable)) for name in FILES]
    return [msgspec.structs.replace(head, file=name) for name, head in heads]


def check(environment: str, warn: Callable[[str], object], package: Path = _PACKAGE) -> None:
    """Refuse production while a file is not signed, warn in staging, and say nothing in development.

    Raises Unreviewed, which names the files.
    """
    if environment == "development":
        return
    missing = [each for each in reviewable(package) if not each.signed]
    if not missing:
        return
    names = ", ".join(f"{each.file} (version {each.version})" for each in missing)
    problem = f"not reviewed by a named person: {names}"
    if environment == "staging":
        warn(f"warning: {problem}")
        return
    raise Unreviewed(
        problem,
        hint="a clinician (counsel for consent texts) reads each file and signs with reviewed_by and "
        "reviewed_on in it; docs/design/safety.md says what to look at",
    )
