"""Holds the image that agent-backend/Dockerfile builds on to the digest in agent-backend/base-image.digest.

A tag can be moved: under python:X-slim-bookworm new builds with Debian's fixes appear, or something that
nobody wanted. Without an argument a missing file is written, to be committed; `--check` writes nothing;
`--update` takes the digest of today, after a look at what has changed. Asks the registry through docker.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "agent-backend" / "Dockerfile"
FILE = ROOT / "agent-backend" / "base-image.digest"
FORM = re.compile(r"sha256:[0-9a-f]{64}")
_ASK_SECONDS = 60


def main(arguments: list[str]) -> int:
    """Compare; return 1 when the digest is another, 2 when it cannot be asked for."""
    if arguments not in ([], ["--check"], ["--update"]):
        print("usage: base_digest.py [--check | --update]")
        return 2
    tag = base(DOCKERFILE.read_text(encoding="utf-8"))
    now = ask(tag)
    if now is None:
        return 2
    return held(FILE, tag, now, arguments[0] if arguments else "")


def base(dockerfile: str) -> str:
    """Return the tag that ARG PYTHON names."""
    found = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, re.MULTILINE)
    if found is None:
        sys.exit("agent-backend/Dockerfile names no base in ARG PYTHON")
    return found[1]


def ask(tag: str) -> str | None:
    """Return the digest that the registry has for a tag, of all platforms; None if none, and print why."""
    docker = shutil.which("docker")
    if docker is None:
        print("the base's digest cannot be asked for: docker is not installed")
        return None
    command = [docker, "buildx", "imagetools", "inspect", tag, "--format", "{{.Manifest.Digest}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"the base's digest cannot be asked for: {type(error).__name__}")
        return None
    digest = done.stdout.strip()
    if done.returncode or not FORM.fullmatch(digest):
        print(f"the base's digest cannot be asked for:\n{done.stderr.strip()[-2000:]}")
        return None
    return digest


def held(file: Path, tag: str, now: str, mode: str) -> int:
    """Compare with the file, whose one line is `TAG DIGEST`; write it as `mode` says."""
    line = f"{tag} {now}"
    kept = file.read_text(encoding="utf-8").strip() if file.exists() else None
    if kept == line:
        print(f"as kept: {line}")
        return 0
    if mode == "--update" or (mode == "" and kept is None):
        file.write_text(line + "\n", encoding="utf-8")
        print(f"written to agent-backend/{file.name}, to be committed: {line}")
        return 0
    if kept is None:
        print(f"agent-backend/{file.name} is missing; it would say: {line}")
        return 0
    print(f"the base is another image.\n  kept: {kept}\n  now:  {line}")
    print("If that is wanted: python3 scripts/base_digest.py --update, and commit the file.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
