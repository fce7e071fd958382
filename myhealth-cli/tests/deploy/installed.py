"""The command `myhealth` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parents[3]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return what it printed as JSON."""
        return msgspec.json.decode(self.out)


def nothing(**more: str) -> dict[str, str]:
    """Return the environment of a machine with nothing: no tools on PATH, no home, no secrets."""
    return {"PATH": "/nonexistent", "HOME": "/nonexistent", **more}


def myhealth(*arguments: str, folder: Path = ROOT, env: Mapping[str, str] | None = None) -> Ended:
    """Run it to its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "myhealth_cli", *arguments],
        cwd=folder,
        env=dict(os.environ) if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)
