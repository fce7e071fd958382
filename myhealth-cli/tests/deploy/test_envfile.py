from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myhealth_cli.deploy import envfile, values
from myhealth_cli.deploy.errors import NothingChangedError

from .stage import find, speaking

ODD = ("a b#c", '""#a', 'pa"ss#1', '"""t', "it's#1")


def flyctl_reads(line: str) -> str | None:
    """Read a line as `flyctl secrets import` does; None: it goes on reading in the next one."""
    value = line.rstrip("\n").partition("=")[2].lstrip(" ")
    before, hash_sign, _ = value.partition("#")
    if hash_sign and before.count('"') % 2 == 0:
        value = before.rstrip(" ")
    if value.startswith('"""'):
        return value[3:-3] if value.endswith('"""') and len(value) >= 6 else None
    for quote in ('"', "'"):
        if value.startswith(quote) and value.endswith(quote):
            return value[1:-1]
    return value


@given(st.text(st.sampled_from("ab=#\"' $\\"), min_size=1))
def test_what_flyctl_reads_is_what_was_given(value: str) -> None:
    assert flyctl_reads(envfile.line("NAME", value)) == value


def test_flyctl_reads_it_so(tmp_path: Path) -> None:
    state = tmp_path / "fly"
    words = ("fly_emulator", "serve", "--port", "0", "--json", "--state", str(state))
    with speaking(*words, log=tmp_path / "log") as fly:

        def flyctl(*words: str, stdin: str = "") -> None:
            env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **fly["env"]}
            subprocess.run([find(), *words], env=env, input=stdin, text=True, check=True, capture_output=True)

        given = {f"NAME_{number}": value for number, value in enumerate(ODD)}
        flyctl("apps", "create", "shop", "--yes")
        lines = "".join(envfile.line(name, value) for name, value in given.items())
        flyctl("secrets", "import", "--stage", "--app", "shop", stdin=lines)
        kept: Any = json.loads((state / "cloud.json").read_text("utf-8"))
        assert {name: each["value"] for name, each in kept["apps"]["shop"]["secrets"].items()} == given


@pytest.mark.parametrize("mark", ["\x0c", "\x1c", "\x85", "\u2028"])
def test_a_value_is_not_cut_where_only_unicode_sees_an_end_and_is_refused(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"SENTRY_DSN=one{mark}B=two\n", "utf-8")
    assert values.read_file(file) == {"SENTRY_DSN": f"one{mark}B=two"}
    assert envfile.unfit(f"one{mark}B=two")
    assert not envfile.unfit("p\u00e4ss wort#1")
    assert "longer" in envfile.unfit("x" * 40_000)


def test_a_line_without_a_sign_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("SENTRY_DSN=1\n\u00e4\x85b\nSUPABASE_URL=3\n", "utf-8")
    with pytest.raises(NothingChangedError, match="line 2 is not"):
        values.read_file(file)
