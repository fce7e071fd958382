"""Makes a stand-in for the image that agent-backend/Dockerfile builds on, where no registry can be reached.

Debian's own packages (debootstrap) under the Dockerfile's tag, in podman's local store: what the image test
builds on. Its Python is Debian's of the same minor version, so sizes measured with it are near the real ones.
Needs root, debootstrap and podman; does nothing where the tag is there already, as after a pull.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parent.parent / "agent-backend" / "Dockerfile"
SUITE = "bookworm"


def tag() -> str:
    """Return the tag of the base image that the Dockerfile names."""
    found = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, "the Dockerfile names its base in ARG PYTHON"
    return found[1]


def main() -> int:
    """Make the image if it is missing; return an exit code."""
    missing = [name for name in ("podman", "debootstrap", "tar") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"skipped: the base image needs root and {', '.join(missing) or 'nothing else'}")
        return 0
    if subprocess.run(["podman", "image", "exists", tag()], check=False).returncode == 0:
        print(f"{tag()} is there")
        return 0
    with tempfile.TemporaryDirectory(prefix="myhealth-base-image-") as folder:
        root = Path(folder) / "root"
        include = "--include=python3,python3-pip,ca-certificates"
        run("debootstrap", "--variant=minbase", include, SUITE, str(root))
        # As in the image it stands for: packages may be installed, and no bytecode comes along.
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        for compiled in root.glob("usr/lib/python3*/**/*.pyc"):
            compiled.unlink()
        for archive in root.glob("var/cache/apt/archives/*.deb"):
            archive.unlink()
        packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        assert packed.stdout is not None
        imported = subprocess.run(
            ["podman", "import", "-", tag()], stdin=packed.stdout, stdout=subprocess.DEVNULL, check=False
        )
        packed.stdout.close()
        if packed.wait() or imported.returncode:
            print("the base image could not be put together", file=sys.stderr)
            return 1
    print(f"made a stand-in for {tag()}")
    return 0


def run(*command: str) -> None:
    """Run a command quietly; its output is shown when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
