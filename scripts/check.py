"""Everything that must hold besides the tests: style, types, layers, fresh files, workflows, Postgres 15.

Runs all checks, also after one has failed, and says at the end which ones have.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
UV = ROOT / ".local" / "uv" / "bin" / "uv"
WORKFLOWS = [str(each) for each in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]

CHECKS: dict[str, list[str]] = {
    "ruff check": [str(BIN / "ruff"), "check", "."],
    "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
    "pyright": [str(BIN / "pyright")],
    "layers": [str(BIN / "lint-imports")],
    "openapi.json is fresh": [sys.executable, "scripts/openapi.py", "--check"],
    "workflows: schema": [
        str(BIN / "check-jsonschema"),
        "--builtin-schema=vendor.github-workflows",
        *WORKFLOWS,
    ],
    "dependabot: schema": [
        str(BIN / "check-jsonschema"),
        "--builtin-schema=vendor.dependabot",
        ".github/dependabot.yml",
    ],
    "workflows: actionlint": [sys.executable, "scripts/actionlint.py"],
    "workflows: zizmor": [str(BIN / "zizmor"), "--offline", "--quiet", "--persona=pedantic", ".github"],
    "Dockerfile: hadolint": [str(BIN / "hadolint"), "agent-backend/Dockerfile"],
    "uv.lock is fresh": [str(UV), "lock", "--check"],
    "database tests on Postgres 15": [sys.executable, "scripts/postgres15.py"],
}


def main() -> int:
    """Run the checks; return 1 if any has failed."""
    failed: list[str] = []
    for name, command in CHECKS.items():
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
        print(f"    {time.monotonic() - began:.1f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else f"all {len(CHECKS)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
