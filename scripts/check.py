"""Everything that must hold besides the tests: style, types, layers, fresh generated files, Postgres 15.

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

CHECKS: dict[str, list[str]] = {
    "ruff check": [str(BIN / "ruff"), "check", "."],
    "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
    "pyright": [str(BIN / "pyright")],
    "layers": [str(BIN / "lint-imports")],
    "openapi.json is fresh": [sys.executable, "scripts/openapi.py", "--check"],
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
