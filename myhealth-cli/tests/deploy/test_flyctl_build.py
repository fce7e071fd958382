"""`make flyctl`: a version that was built before says nothing of the one that is wanted now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .installed import ROOT

GO = """#!/bin/sh
[ ! -e broken ] || { echo no >&2; exit 1; }
echo "$2" >"$GOBIN/flyctl"
"""


def test_each_version_is_built_although_it_was_before(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    go = tmp_path / "bin" / "go"
    go.write_text(GO, "utf-8")
    go.chmod(0o755)
    script, built = tmp_path / "scripts" / "flyctl.py", tmp_path / ".local" / "flyctl"
    text = (ROOT / "scripts" / "flyctl.py").read_text("utf-8")
    before = next(line for line in text.splitlines() if line.startswith("VERSION = "))

    def build(version: str) -> int:
        script.write_text(text.replace(before, f'VERSION = "{version}"'), "utf-8")
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=env, check=False, capture_output=True
        )
        return done.returncode

    for version in ("v1", "v2", "v1"):
        assert build(version) == 0
        assert (built / "flyctl").read_text("utf-8").endswith(f"@{version}\n")
    (tmp_path / "broken").touch()
    assert build("v1") == 0, "it is there, and not built again"
    assert build("v2") == 1
    assert build("v2") == 1, "and one that could not be built is not taken for built"
