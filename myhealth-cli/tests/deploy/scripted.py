"""A flyctl that says what a test tells it to: one machine, and a yes to everything."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from myhealth_cli.deploy.flyctl import Flyctl

if TYPE_CHECKING:
    from pathlib import Path

    from myhealth_cli.deploy.state import Image

_PROGRAM = """#!{python}
import pathlib, sys
folder, words = pathlib.Path({folder!r}), sys.argv[1:]
with (folder / "heard").open("a") as heard:
    heard.write(" ".join(words) + "\\n")
if words[:2] == ["machine", "list"]:
    print((folder / "machines").read_text())
if words[:2] == ["auth", "token"]:
    print("fo1_token")
"""


class Scripted:
    """Lists one machine with an image; whatever else it is asked for, it says yes."""

    def __init__(self, folder: Path, runs: Image) -> None:
        self.folder = folder
        name, _, digest = runs.ref.partition("@")
        registry, _, repository = name.removesuffix(":tag").partition("/")
        (folder / "machines").write_text(
            f'[{{"id": "m1", "state": "started", "config": {{"env": {{"RELEASE": "{runs.release}"}}}}, '
            f'"image_ref": {{"registry": "{registry}", "repository": "{repository}", "tag": "tag", '
            f'"digest": "{digest}"}}}}]',
            "utf-8",
        )
        self.fly = Flyctl(program(folder, _PROGRAM.format(python=sys.executable, folder=str(folder))), folder)

    def heard(self, command: str) -> list[list[str]]:
        """Return the calls of a command, in order."""
        lines = (self.folder / "heard").read_text("utf-8").splitlines()
        return [words for line in lines if (words := shlex.split(line))[0] == command]


def program(folder: Path, text: str) -> Path:
    """Write a program."""
    file = folder / "flyctl"
    file.write_text(text, "utf-8")
    file.chmod(0o755)
    return file
