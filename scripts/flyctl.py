"""Builds flyctl into .local/flyctl, where the tests of fly-emulator find it. `make flyctl`.

From the Go module proxy, at a pinned version. Without Go, or where the proxy has none, one line says so
and those tests are skipped. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "v0.4.87"
MODULE = "github.com/superfly/flyctl"
FOLDER = Path(__file__).resolve().parent.parent / ".local" / "flyctl"


def main() -> int:
    """Build it unless this version is there; return 1 where it cannot be had."""
    stamp = FOLDER / VERSION
    if stamp.exists():
        return 0
    go = shutil.which("go")
    if go is None:
        return failed("Go is not installed")
    FOLDER.mkdir(parents=True, exist_ok=True)
    said = f"flyctl {VERSION}: building into .local/flyctl (some minutes at the first time)"
    print(said, file=sys.stderr, flush=True)
    # CGO off: nothing but Go is needed then.
    env = {**os.environ, "GOBIN": str(FOLDER), "CGO_ENABLED": "0", "GOFLAGS": ""}
    build = [go, "install", f"{MODULE}@{VERSION}"]
    done = subprocess.run(build, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return failed(f"`{' '.join(['go', *build[1:]])}` failed: {lines[-1].strip()}")
    stamp.touch()
    return 0


def failed(reason: str) -> int:
    """Say in one line why there is none, and what follows."""
    print(f"flyctl {VERSION}: {reason}; its tests are skipped without it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
