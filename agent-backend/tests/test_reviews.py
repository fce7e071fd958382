"""Texts and thresholds that nobody has signed stay out of production."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent_backend import consents, reviews
from agent_backend.cli import main

PRODUCTION = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/x",
    "ANTHROPIC_API_KEY": "sk-ant-" + "x" * 32,
    "APP_NAME": "app",
    "SUPABASE_URL": "https://ref.supabase.co",
    "SUPABASE_SERVICE_KEY": "sb_secret_" + "x" * 24,
}


def signed(folder: Path, by: str, on: str = "2026-12-01") -> Path:
    for name in reviews.FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        head = {"title": "t", "version": "1", "reviewed_by": by, "reviewed_on": on, "more": {}}
        (folder / name).write_text(json.dumps(head), encoding="utf-8")
    return folder


def test_every_file_is_listed_with_its_version() -> None:
    listed = reviews.reviewable()
    assert [each.file for each in listed] == list(reviews.FILES)
    assert all(each.version and each.title for each in listed)
    data = Path(reviews.__file__).parent
    with_a_field = {
        str(path.relative_to(data))
        for path in data.rglob("*.json")
        if "reviewed_by" in path.read_text("utf-8")
    }
    assert with_a_field == set(reviews.FILES), "a file with the field must be listed"


def test_nobody_has_signed_yet_so_production_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"], PRODUCTION) == 2
    said = capsys.readouterr()
    assert "Secret(***)" in said.out, "whoever looks at a server that runs sees its settings all the same"
    lines = said.err.splitlines()
    drafts = [line.split()[1] for line in lines[::2] if "draft" in line]
    assert drafts == [*reviews.FILES, *consents.load().unreviewed()]
    assert all("reviewed_by" in line for line in lines[1::2])
    assert main(["check-config", "--json"], PRODUCTION) == 2
    assert len(json.loads(capsys.readouterr().out)["errors"]) == len(drafts)


def test_staging_is_warned_and_development_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"], {**PRODUCTION, "ENVIRONMENT": "staging"}) == 0
    assert "warning: safety/data/texts.json is a draft" in capsys.readouterr().err
    assert main(["check-config"], {"DATABASE_URL": PRODUCTION["DATABASE_URL"]}) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("by", "on"), [("", "2026-12-01"), (" ", "2026-12-01"), ("A. Name", "")])
def test_a_signature_is_a_name_and_a_date(tmp_path: Path, by: str, on: str) -> None:
    assert reviews.unsigned(signed(tmp_path, by, on)) == list(reviews.FILES)


def test_signed_files_are_let_into_production(tmp_path: Path) -> None:
    assert reviews.unsigned(signed(tmp_path, "A. Name")) == []
