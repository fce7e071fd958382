"""Builds flyctl into .local/flyctl: `make flyctl`. With --tests it runs the tests of it: `make test-flyctl`.

From the Go module proxy, at a pinned version; FLYCTL names another one instead. Without Go, or where the
proxy has none, one line says so. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "v0.4.87"
MODULE = "github.com/superfly/flyctl"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".local" / "flyctl"
TESTS = (
    "fly-emulator/tests/test_flyctl.py",
    "fly-emulator/tests/test_flyctl_alike.py",
    "myhealth-cli/tests/deploy",
)


def main() -> int:
    """Build it, or run its tests with it; return 1 where it cannot be had."""
    if sys.argv[1:] != ["--tests"]:
        return build()
    program = os.environ.get("FLYCTL")
    if not program and build() != 0:
        return 1
    env = {**os.environ, "TEST_FLYCTL": program or str(FOLDER / "flyctl")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", *TESTS], cwd=ROOT, env=env, check=False
    ).returncode


def build() -> int:
    """Build it unless this version is there; return 1 where it cannot be had."""
    stamp = FOLDER / VERSION
    if stamp.exists() and (FOLDER / "flyctl").exists():
        return 0
    go = shutil.which("go")
    if go is None:
        return failed("Go is not installed")
    FOLDER.mkdir(parents=True, exist_ok=True)
    # One program, so one stamp: that of another version is about what is overwritten now.
    for old in FOLDER.glob("v*"):
        old.unlink()
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
    print(f"flyctl {VERSION}: {reason}; `make test` uses a stand-in", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
