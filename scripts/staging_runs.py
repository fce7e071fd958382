"""Checks that staging runs the commit that is checked out: what a reviewer said yes to, and nothing later.

`myhealth status` says what runs. The lock of `myhealth promote` is taken after this; what comes between is
seen in the record of that promotion, which names the release.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MYHEALTH = Path(sys.executable).parent / "myhealth"


def main() -> int:
    """Compare; return 0 if every machine of staging runs this commit."""
    commit = output("git", "rev-parse", "HEAD")
    wrong = others(json.loads(output(str(MYHEALTH), "status", "staging", "--json")), commit)
    if wrong is None:
        print(f"staging runs {commit[:12]}")
        return 0
    print(f"staging runs {wrong}, not {commit[:12]}: approve the newer run, or repeat all of this one")
    return 1


def others(status: dict[str, Any], commit: str) -> str | None:
    """Return what staging runs instead of `commit`, from `myhealth status --json`; None if it runs that."""
    releases = {str(machine["release"]) for machine in status["machines"]}
    if releases and all(len(each) >= 7 and commit.startswith(each) for each in releases):
        return None
    return ", ".join(sorted(releases)) or "nothing"


def output(*command: str) -> str:
    """Run a command and return what it prints; end as it ends where it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
