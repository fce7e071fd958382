"""Makes .venv on a machine that has only Python 3.11: pins uv from PyPI, lets it install what uv.lock names.

Runs under any Python 3, to be able to say that it is too old. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

UV = "0.13.9"
ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".local" / "uv"
STAMP = ROOT / ".venv" / ".ready"
SOURCES = (
    "agent-backend/src",
    "anthropic-emulator/src",
    "fly-emulator/src",
    "myhealth-cli/src",
    "supabase-emulator/src",
)
OTHERS = ("python3.14", "python3.13", "python3.12", "python3.11")


def main() -> int:
    """Bring .venv up to date; return an exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - what we find out here
        return use_newer_python()
    began = time.monotonic()
    if not have_uv():
        say(f"installing uv {UV} into .local/uv")
        if not install_uv():
            return 1
    say("installing what uv.lock names into .venv (some 100 MB at the first time)")
    sync = [str(TOOLS / "bin" / "uv"), "sync", "--locked", "--python", sys.executable]
    if subprocess.run(sync, cwd=ROOT, env=uv_env(), check=False).returncode != 0:
        return failed("uv could not install the packages (its reason is above)", "Is PyPI reachable?")
    compile_sources()
    STAMP.touch()
    say(f"ready after {time.monotonic() - began:.0f} s")
    return 0


def use_newer_python() -> int:
    """Go on under a newer Python if the machine has one."""
    for name in OTHERS:
        found = shutil.which(name)
        # A version manager's shim can be there without the version.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            os.execv(found, [found, __file__])
    version = ".".join(map(str, sys.version_info[:3]))
    return failed(
        f"this needs Python 3.11 or later; {sys.executable} is {version}",
        "Install one (Debian: apt install python3; macOS: brew install python), or name it: "
        "make PYTHON=/path/to/python3 run",
    )


def have_uv() -> bool:
    """Say whether our uv is there in the version we pin."""
    uv = TOOLS / "bin" / "uv"
    if not uv.exists():
        return False
    try:
        shown = subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return shown.split()[1:2] == [UV]


def install_uv() -> bool:
    """Make a venv of its own for uv; say why if that fails."""
    if find_spec("ensurepip") is None:
        failed(
            f"{sys.executable} cannot make virtual environments (ensurepip is missing)",
            "Debian and Ubuntu: apt install python3-venv",
        )
        return False
    shutil.rmtree(TOOLS, ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "venv", str(TOOLS)], check=False).returncode != 0:
        failed("python3 -m venv failed (its reason is above)", "Debian and Ubuntu: apt install python3-venv")
        return False
    pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, f"uv=={UV}"], check=False).returncode != 0:
        failed("pip could not install uv (its reason is above)", "Is PyPI reachable? Does pip need a proxy?")
        return False
    return True


def uv_env() -> dict[str, str]:
    """Return uv's environment: .venv is ours whatever environment is active, and no Python is downloaded.

    uv trusts the authorities it brings; a company's own are in the system's store, where there is one.
    """
    env = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "UV_PROJECT"}}
    if sys.platform == "darwin" or Path("/etc/ssl/certs/ca-certificates.crt").exists():
        env.setdefault("UV_SYSTEM_CERTS", "1")
    return {**env, "UV_PROJECT_ENVIRONMENT": str(ROOT / ".venv"), "UV_PYTHON_DOWNLOADS": "never"}


def compile_sources() -> None:
    """Compile our own packages: they are used in place, and uv compiles only what it installs."""
    python = ROOT / ".venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "compileall", "-q", *SOURCES], cwd=ROOT, check=True)


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"bootstrap: {text}", flush=True)


def failed(what: str, hint: str) -> int:
    """Tell what went wrong and what to do; return the exit code."""
    sys.stderr.write(f"bootstrap: {what}\n  {hint}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
