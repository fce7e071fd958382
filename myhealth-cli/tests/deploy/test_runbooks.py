"""Every command of every runbook is typed by test_flyctl_runbooks.py, or marked: it needs an account."""

from __future__ import annotations

import re
import shlex
import textwrap

import pytest
import typer.main
from typer.core import TyperGroup

from myhealth_cli.cli import app

from .installed import ROOT
from .runbooks import PAGES, commands, found
from .scripts import SCRIPTS

GERMAN = "first-deployment.de"
WHOLE = {"first-deployment": "test_flyctl_first_deployment.py"}
"""Pages whose blocks are run as one script, and by which test."""
ELSEWHERE = {
    "first-deployment": {
        "make run": "test_dev.py: it is `myhealth dev`",
        "make test": "this is it",
        "brew install python": "puts a program on a laptop",
        "myhealth setup staging --replace": "test_flyctl_setup.py, which has a terminal",
        "fly tokens create deploy --app myhealth-agents-staging --expiry 720h": "needs an account",
    },
    "deploy": {"myhealth setup staging --replace": "test_flyctl_setup.py, which has a terminal"},
}
"""What is not typed by scripts.py, and why."""


@pytest.mark.parametrize("page", [page for page in PAGES if page != GERMAN])
def test_each_command_of_a_page_is_typed_by_a_test_or_needs_an_account(page: str) -> None:
    told = {each.text for each in commands(page) if not each.account and not (each.block and page in WHOLE)}
    typed = {name: {each.command for each in script} for name, script in SCRIPTS.items()}
    elsewhere = set(ELSEWHERE.get(page, ()))
    missing = told.difference(elsewhere, *typed.values())
    assert missing == set(), f"{page}: neither in scripts.py nor marked **(account)**"
    assert typed.get(page, set()) - told == set(), (
        f"{page}: scripts.py types what is not on the page, or needs an account"
    )
    assert elsewhere - told == set(), f"{page}: no longer there"


def test_scripts_are_of_pages_that_exist() -> None:
    assert set(SCRIPTS) <= set(PAGES)


def test_a_new_command_is_seen_wherever_it_stands() -> None:
    page = """Say `fly apps destroy
    x --yes`, or `brew install x` **(account)**; `status` and `myhealth` alone are words.
```sh
myhealth deploy staging   # a comment
jq .x < y                 # **(account)**
```
| a | `agent-backend token --user x` |
```text
fly nothing
```
```
$ openssl rand 1
```
"""
    assert [(each.line, each.text, each.account) for each in found("page", page)] == [
        (1, "fly apps destroy x --yes", False),
        (2, "brew install x", True),
        (4, "myhealth deploy staging", False),
        (5, "jq .x < y", True),
        (7, "agent-backend token --user x", False),
        (12, "$ openssl rand 1".removeprefix("$ "), False),
    ]


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
    parts = [part.strip() for each in commands(page) for part in re.split(r"; ", each.text)]
    for each in [part for part in parts if part.startswith("myhealth ")]:
        _, verb, *words = shlex.split(each.partition(" > ")[0])
        assert verb in group.commands, each
        params = group.commands[verb].params
        known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                assert word in known, each
        required = [param for param in params if param.param_type_name == "argument" and param.required]
        assert len([word for word in words if not word.startswith("-")]) >= len(required), each


def test_both_languages_say_the_same_commands() -> None:
    assert [each.text for each in commands(GERMAN)] == [each.text for each in commands("first-deployment")]
    assert blocks(GERMAN) == blocks("first-deployment")
