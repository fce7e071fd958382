"""What users are asked to consent to, and what needs which consent.

The texts are files of the package, `consent_texts/PURPOSE.VERSION.LOCALE.md`: a head between two `---`
lines (`requires_renewal`, `reviewed_by`), then the text exactly as it is shown; its first line is its title.
A version is a date. Once a version is published the text of its files is never changed: people have agreed
to these very bytes, and what is stored of a consent is their SHA-256. A new version is a new file, in every
locale.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from agent_backend.errors import OperatorError

Purpose: TypeAlias = Literal["health_data_processing", "third_party_ai"]
Guarded: TypeAlias = Literal["model_call", "health_data"]

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

REQUIRED: Mapping[Guarded, tuple[Purpose, ...]] = {
    # What people tell a health coach is health data by itself, before any sample is read.
    "model_call": ("health_data_processing", "third_party_ai"),
    # Tools of the server, and the upload of samples.
    "health_data": ("health_data_processing",),
}
"""Which purposes guard what: the one table."""

LOCALES = ("de", "en")
"""What every version must exist in."""

_NAME = re.compile(r"(?P<purpose>[a-z_]+)\.(?P<version>\d{4}-\d\d-\d\d)\.(?P<locale>[a-z]{2})")
_FILE = re.compile(
    r"---\nrequires_renewal: (?P<renewal>true|false)\nreviewed_by:(?P<reviewed>[^\n]*)\n---\n(?P<text>.+)",
    re.DOTALL,
)


class ConsentText(msgspec.Struct, frozen=True, kw_only=True):
    """One text: a purpose, in one version and one language."""

    purpose: Purpose
    version: str
    locale: str
    title: str
    text: str
    sha256: str
    """Of the text's UTF-8 bytes, in hex."""
    requires_renewal: bool
    """Who has agreed to an older version has to be asked again."""
    reviewed_by: str
    """Empty: a draft that no lawyer has seen."""

    @property
    def name(self) -> str:
        """The file it stands in."""
        return f"consent_texts/{self.purpose}.{self.version}.{self.locale}.md"


class Catalogue:
    """All texts, of all versions."""

    def __init__(self, texts: Sequence[ConsentText]) -> None:
        self._texts = {(each.purpose, each.version, each.locale): each for each in texts}
        self._counting = {purpose: self._versions_that_count(purpose) for purpose in PURPOSES}
        self._required = {guarded: self._as_json(purposes) for guarded, purposes in REQUIRED.items()}

    def _versions_that_count(self, purpose: Purpose) -> list[str]:
        """Return the versions whose consents count, the current one first."""
        renewals = {each.version: each.requires_renewal for each in self._of(purpose)}
        counting: list[str] = []
        for version in sorted(renewals, reverse=True):
            counting.append(version)
            if renewals[version]:
                break
        return counting

    def _of(self, purpose: str) -> list[ConsentText]:
        return [each for each in self._texts.values() if each.purpose == purpose]

    def _as_json(self, purposes: Sequence[Purpose]) -> str:
        return msgspec.json.encode({purpose: self._counting[purpose] for purpose in purposes}).decode()

    def required(self, guarded: Guarded) -> str:
        """Return what the database is asked with: JSON, purpose -> the versions that count."""
        return self._required[guarded]

    def current_version(self, purpose: Purpose) -> str:
        """Return the version people are asked to agree to now."""
        return self._counting[purpose][0]

    def counts(self, purpose: Purpose, version: str) -> bool:
        """Say whether a consent to this version, not withdrawn, is still one."""
        return version in self._counting[purpose]

    def known(self, purpose: Purpose, version: str) -> bool:
        """Say whether there is, or was, such a version."""
        return any(each.version == version for each in self._of(purpose))

    def current(self) -> list[ConsentText]:
        """Return the current texts in every language."""
        return [
            each
            for each in self._texts.values()
            if each.purpose in PURPOSES and each.version == self.current_version(each.purpose)
        ]

    def find(self, purpose: Purpose, version: str, locale: str) -> ConsentText | None:
        """Return one text."""
        return self._texts.get((purpose, version, locale))

    def unreviewed(self) -> list[str]:
        """Return the files of current texts that nobody has signed for."""
        return [each.name for each in self.current() if not each.reviewed_by]


def purpose_of(word: str) -> Purpose | None:
    """Return the purpose of this name."""
    return next((each for each in PURPOSES if each == word), None)


def folder() -> Path:
    """Return the folder of the texts that ship with us."""
    return Path(__file__).resolve().parent / "consent_texts"


def load(directory: Path | None = None) -> Catalogue:
    """Read all texts. Raises OperatorError for a file that is not one, or a version that lacks a locale."""
    paths = sorted((directory or folder()).glob("*.md"))
    texts = [_read(path) for path in paths]
    for purpose in PURPOSES:
        versions: dict[str, set[tuple[str, bool]]] = {}
        for each in texts:
            if each.purpose == purpose:
                versions.setdefault(each.version, set()).add((each.locale, each.requires_renewal))
        if not versions:
            raise _unusable(f"there is no consent text for {purpose}", "add it, in German and English")
        for version, found in versions.items():
            if sorted(locale for locale, _ in found) != sorted(LOCALES) or len({r for _, r in found}) != 1:
                raise _unusable(
                    f"the consent text {purpose} {version} is not there once in each of {', '.join(LOCALES)}",
                    "every locale has a file of this version, and all say the same of requires_renewal",
                )
    return Catalogue(texts)


def _read(path: Path) -> ConsentText:
    name = _NAME.fullmatch(path.stem)
    purpose = None if name is None else purpose_of(name["purpose"])
    parts = _FILE.fullmatch(path.read_text(encoding="utf-8"))
    if name is None or purpose is None or parts is None:
        raise _unusable(
            f"the consent text {path.name} cannot be read",
            "PURPOSE.VERSION.LOCALE.md; a head with requires_renewal and reviewed_by; the text",
        )
    text = parts["text"].strip()
    return ConsentText(
        purpose=purpose,
        version=name["version"],
        locale=name["locale"],
        title=text.partition("\n")[0].strip(),
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        requires_renewal=parts["renewal"] == "true",
        reviewed_by=parts["reviewed"].strip(),
    )


def _unusable(problem: str, hint: str) -> OperatorError:
    return OperatorError(problem, hint=hint)
