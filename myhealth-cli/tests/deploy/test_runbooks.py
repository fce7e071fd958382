"""What the runbooks tell people to type exists: verbs, options, arguments."""

from __future__ import annotations

import re
import shlex
import textwrap

import pytest
import typer.main
from typer.core import TyperGroup

from myhealth_cli.cli import app

from .installed import ROOT

PAGES = ("deploy", "rollback", "incident", "restore", "first-deployment", "first-deployment.de")


def told(page: str) -> list[str]:
    """Return every `myhealth ...` of a page, in blocks and in lines."""
    text = (ROOT / "docs" / "runbooks" / f"{page}.md").read_text("utf-8")
    inline = re.findall(r"`(myhealth [^`]+)`", text)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in re.split(r"\n|; ", block)]
    return [" ".join(each.split()) for each in (*inline, *lines) if each.strip().startswith("myhealth ")]


def blocks(page: str) -> list[str]:
    """Return the `sh` blocks of a page, without what they are indented by."""
    text = (ROOT / "docs" / "runbooks" / f"{page}.md").read_text("utf-8")
    return [
        textwrap.dedent(each) for each in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_type_exists(page: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    commands = told(page)
    assert commands or page == "restore"
    for each in commands:
        _, verb, *words = shlex.split(each)
        assert verb in group.commands, each
        params = group.commands[verb].params
        known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                assert word in known, each
        required = [param for param in params if param.param_type_name == "argument" and param.required]
        assert len([word for word in words if not word.startswith("-")]) >= len(required), each


def test_both_languages_say_the_same_commands() -> None:
    german = set(told("first-deployment.de"))
    assert german == set(told("first-deployment"))
    assert blocks("first-deployment.de") == blocks("first-deployment")
