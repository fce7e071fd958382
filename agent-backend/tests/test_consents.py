from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from agent_backend import consents
from agent_backend.consents import LOCALES, PURPOSES, Catalogue, ConsentText, Purpose
from agent_backend.errors import OperatorError

HEAD = "---\nrequires_renewal: {renewal}\nreviewed_by:{reviewed}\n---\n"


def write(folder: Path, *versions: tuple[Purpose, str, bool], reviewed: str = "") -> Path:
    """Write texts in all languages."""
    for purpose, version, renewal in versions:
        for locale in LOCALES:
            head = HEAD.format(renewal=str(renewal).lower(), reviewed=reviewed)
            text = f"{head}{purpose} {locale}\n\nÄ {version}\n"
            (folder / f"{purpose}.{version}.{locale}.md").write_text(text, encoding="utf-8")
    return folder


def text(version: str, *, renewal: bool) -> ConsentText:
    return ConsentText(
        purpose="third_party_ai",
        version=version,
        locale="en",
        title="",
        text="",
        sha256="",
        requires_renewal=renewal,
        reviewed_by="",
    )


def other() -> ConsentText:
    return ConsentText(
        purpose="health_data_processing",
        version="2026-01-01",
        locale="en",
        title="",
        text="",
        sha256="",
        requires_renewal=True,
        reviewed_by="",
    )


def test_what_ships_is_complete_and_says_what_the_law_asks_for() -> None:
    catalogue = consents.load()
    shown = catalogue.current()
    assert sorted((each.purpose, each.locale) for each in shown) == sorted(
        (purpose, locale) for purpose in PURPOSES for locale in LOCALES
    )
    for each in shown:
        assert each.sha256 == hashlib.sha256(each.text.encode()).hexdigest()
        assert each.title == each.text.splitlines()[0]
        recipients = ["Anthropic, PBC"] if each.purpose == "third_party_ai" else ["eu-central-1", "(fra)"]
        voluntary = {"de": ["freiwillig", "jederzeit"], "en": ["voluntary", "at any time"]}
        for word in [*recipients, *voluntary[each.locale]]:
            assert word in each.text, (each.name, word)


@pytest.mark.parametrize(
    ("versions", "counting"),
    [
        ([("2026-01-01", False)], ["2026-01-01"]),
        ([("2026-01-01", True), ("2026-02-01", False)], ["2026-02-01", "2026-01-01"]),
        ([("2026-01-01", False), ("2026-02-01", True)], ["2026-02-01"]),
        (
            [("2026-01-01", False), ("2026-02-01", True), ("2026-03-01", False)],
            ["2026-03-01", "2026-02-01"],
        ),
    ],
)
def test_a_version_that_requires_renewal_ends_those_before(
    versions: list[tuple[str, bool]], counting: list[str]
) -> None:
    catalogue = Catalogue([other(), *(text(version, renewal=renewal) for version, renewal in versions)])
    assert catalogue.current_version("third_party_ai") == counting[0]
    for version, _ in versions:
        assert catalogue.counts("third_party_ai", version) == (version in counting)
    assert json.loads(catalogue.required("model_call"))["third_party_ai"] == counting
    assert json.loads(catalogue.required("health_data")) == {"health_data_processing": ["2026-01-01"]}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    both: list[tuple[Purpose, str, bool]] = [(purpose, "2026-01-01", True) for purpose in PURPOSES]
    consents.load(write(tmp_path, *both))
    for name, content, named in (
        ("third_party_ai.2026-02-01.de.md", HEAD.format(renewal="true", reviewed="") + "x", "2026-02-01"),
        ("third_party_ai.v2.de.md", HEAD.format(renewal="true", reviewed="") + "x", "v2.de.md"),
        ("selling.2026-02-01.de.md", HEAD.format(renewal="true", reviewed="") + "x", "selling"),
        ("third_party_ai.2026-01-01.de.md", "no head", "third_party_ai.2026-01-01.de.md"),
        ("third_party_ai.2026-01-01.de.md", HEAD.format(renewal="maybe", reviewed="") + "x", "de.md"),
        ("third_party_ai.2026-01-01.de.md", HEAD.format(renewal="false", reviewed="") + "x", "2026-01-01"),
    ):
        path = tmp_path / name
        before = path.read_text(encoding="utf-8") if path.exists() else None
        path.write_text(content, encoding="utf-8")
        with pytest.raises(OperatorError, match=named):
            consents.load(tmp_path)
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    for path in tmp_path.glob("third_party_ai.*"):
        path.unlink()
    with pytest.raises(OperatorError, match="no consent text for third_party_ai"):
        consents.load(tmp_path)


def test_only_current_texts_have_to_be_reviewed(tmp_path: Path) -> None:
    both: list[tuple[Purpose, str, bool]] = [(purpose, "2026-01-01", True) for purpose in PURPOSES]
    assert len(consents.load(write(tmp_path, *both)).unreviewed()) == 4
    newer: list[tuple[Purpose, str, bool]] = [(purpose, "2026-02-01", True) for purpose in PURPOSES]
    write(tmp_path, *newer, reviewed=" Dr. Example, 2026-02-01")
    assert consents.load(tmp_path).unreviewed() == []
