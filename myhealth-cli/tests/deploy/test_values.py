from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from myhealth_cli.deploy import values
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.values import Problem

from .installed import ROOT, myhealth, nothing

REF = "abcdefghijklmnopqrst"
GOOD = {
    "DATABASE_URL": f"postgresql://postgres.{REF}:word@aws-0-eu-central-1.pooler.supabase.com:5432/postgres"
    "?sslmode=verify-full",
    "ANTHROPIC_API_KEY": "sk-ant-plain-words",
    "SUPABASE_URL": f"https://{REF}.supabase.co",
    "SUPABASE_SERVICE_KEY": "sb_secret_plain_words",
}


def test_a_file_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    file.write_bytes(
        b"\xef\xbb\xbf# ours\r\n\r\nexport DATABASE_URL=a=b#c   # session pooler\r\n"
        b"ANTHROPIC_API_KEY='x # y'  # ours\r\nSUPABASE_URL = \"z\"\r\nCANARY_EMAIL=other@example.com\r\n"
    )
    assert values.read_file(file) == {
        "DATABASE_URL": "a=b#c",
        "ANTHROPIC_API_KEY": "x # y",
        "SUPABASE_URL": "z",
        "CANARY_EMAIL": "other@example.com",
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("plain-word-that-must-not-show", "line 2 is not KEY=VALUE"),
        ("plain-word=that-must-not-show", "line 2 is not KEY=VALUE"),
        ("PLAINWORD==", "line 2 sets a name that no environment has"),
        ("SENTRY_DSN=", "line 2: SENTRY_DSN has no value"),
        ("SENTRY_DSN='' # plain-word", "line 2: SENTRY_DSN has no value"),
        ("SUPABASE_URL=plain-word", "line 2 sets SUPABASE_URL again"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_never_quoted(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "secrets.env"
    file.write_text(f"SUPABASE_URL=x\n{line}\n", "utf-8")
    ended = myhealth("setup", "staging", "--from", str(file), env=nothing())
    assert (ended.code, says in ended.err) == (2, True), ended
    assert len(ended.err.splitlines()) == 2
    assert "plain" not in ended.err.lower()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NothingChangedError, match="cannot be read: No such file"):
        values.read_file(tmp_path / "none")
    with pytest.raises(NothingChangedError, match="cannot be read: Is a directory"):
        values.read_file(tmp_path)
    (tmp_path / "latin").write_bytes(b"SUPABASE_URL=\xff\n")
    with pytest.raises(NothingChangedError, match="no UTF-8"):
        values.read_file(tmp_path / "latin")


@pytest.mark.parametrize(("mode", "seen"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_may_read(tmp_path: Path, mode: int, seen: bool) -> None:  # noqa: FBT001 - a parameter
    file = tmp_path / "secrets.env"
    file.touch()
    file.chmod(mode)
    assert values.seen_by_others(file) is seen


def look(**more: str) -> list[Problem]:
    return values.look(deployed("production"), ROOT, {**GOOD, **more})


def test_the_server_says_what_is_wrong() -> None:
    assert look() == []
    wrong = look(
        DATABASE_URL=f"postgresql://postgres.{REF}:word@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
        ANTHROPIC_API_KEY="sk-ant-admin-word",
        SUPABASE_URL=f"http://{REF}.supabase.co",
        SUPABASE_SERVICE_KEY="sb_publishable_word",
    )
    told = " ".join(each.says for each in wrong if not each.warning)
    for each in ("6543", "TLS", "admin key", "https://", "publishable key"):
        assert each in told
    assert "word" not in told.replace("words", "")
    [*_, last] = look(ANTHROPIC_API_KEY="sk-ant-\x7fword")
    assert last.says == "ANTHROPIC_API_KEY has a character that cannot be printed"
    assert all(each.hint for each in wrong)


def test_values_of_two_projects_are_told_apart() -> None:
    (wrong,) = look(SUPABASE_URL="https://zzzzefghijklmnopqrst.supabase.co")
    assert wrong.says == "DATABASE_URL is another project's than SUPABASE_URL"


def test_what_nobody_has_signed_is_named(tmp_path: Path) -> None:
    production = deployed("production")
    file = ROOT / "agent-backend" / "src" / "agent_backend" / "guardrails.json"
    signed = bool(json.loads(file.read_text("utf-8"))["reviewed_by"])
    assert ("guardrails.json" not in values.drafts(production, ROOT)) is signed
    toml = tmp_path / production.config
    toml.parent.mkdir()
    text = (ROOT / production.config).read_text("utf-8")
    toml.write_text(text.replace('ENVIRONMENT = "production"', 'ENVIRONMENT = "development"'), "utf-8")
    assert values.drafts(production, tmp_path) == [], "development may do without"


def test_the_pooler_wants_the_project_behind_the_users_name_and_its_certificate_is_checked() -> None:
    url = GOOD["DATABASE_URL"]
    assert look(DATABASE_URL=url.replace("//postgres.", "//agent_backend_login.")) == []
    (wrong,) = look(DATABASE_URL=url.replace(f".{REF}:", ":"))
    assert wrong.says == "DATABASE_URL names a pooler and no project"
    assert "agent_backend_login." in wrong.hint
    (wrong,) = look(DATABASE_URL=url.replace("verify-full", "require"))
    assert "whose certificate" in wrong.says
    assert "sslmode=verify-full" in wrong.hint


def test_what_is_not_given_is_not_missed() -> None:
    assert values.look(deployed("staging"), ROOT, {"ANTHROPIC_API_KEY": "sk-ant-plain"}) == []


def test_without_the_server_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(NothingChangedError, match="cannot be looked at"):
        values.look(deployed("staging"), tmp_path, GOOD)


def test_a_person_is_asked_again_for_what_does_not_fit() -> None:
    answers = iter(["", "first", "bad", "second", "third", "fourth", ""])
    asked: list[str] = []
    told: list[str] = []

    def prompt(says: str) -> str:
        asked.append(says.partition(":")[0])
        return next(answers)

    def check(found: Mapping[str, str]) -> list[Problem]:
        if found.get("SUPABASE_URL") == "bad":
            return [Problem("DATABASE_URL is another project's than SUPABASE_URL", "take both from one")]
        return [Problem("SUPABASE_URL is strange", "look", warning=True)]

    found = values.ask(
        ["DATABASE_URL", "SUPABASE_URL", "ANTHROPIC_API_KEY", "SENTRY_DSN"],
        needed=["DATABASE_URL"],
        prompt=prompt,
        check=check,
        tell=told.append,
    )
    assert found == {"DATABASE_URL": "second", "SUPABASE_URL": "third", "ANTHROPIC_API_KEY": "fourth"}
    assert asked == [
        *("DATABASE_URL", "DATABASE_URL", "SUPABASE_URL", "DATABASE_URL", "SUPABASE_URL"),
        *("ANTHROPIC_API_KEY", "SENTRY_DSN"),
    ]
    assert "DATABASE_URL is needed" in told[0]
    assert told[1].startswith("DATABASE_URL is another project's")
    assert len(told) == 2
