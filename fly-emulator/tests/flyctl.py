"""The real flyctl against `fly-emulator serve`: where it is, and how it is run. Traffic stays on loopback."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fly_emulator.cloud.images import Entry, Images

from .fleets import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("TEST_FLYCTL")
"""The real flyctl, where its own tests are asked for; they take a minute."""
NOT_ASKED = "the real flyctl's own tests: `make test-flyctl`"
MISSING = "no flyctl to compare with: `make flyctl` builds it where Go's module proxy has it"
STAND_IN = str(Path(sys.executable).parent / "flyctl-emulator")
_NUMBERS = itertools.count()
WEB = shlex.join((sys.executable, "-E", "-s", str(PROGRAMS / "web.py")))
QUIET = ("--smoke-checks=false",)
"""Smoke checks look for ten seconds at every machine."""
ONE = (*QUIET, "--ha=false")
"""One machine."""
TOML = """\
app = "{app}"
primary_region = "fra"
kill_signal = "SIGTERM"

[deploy]
{deploy}

[env]
PORT = "8080"

[http_service]
internal_port = 8080
force_https = true
auto_stop_machines = "off"
auto_start_machines = true

[[http_service.checks]]
path = "{check}"
interval = "1s"
grace_period = "1s"
"""


def find_flyctl() -> str | None:
    """Return the real one: TEST_FLYCTL, FLYCTL, one on PATH, or what `make flyctl` has built."""
    built = ROOT / ".local" / "flyctl" / "flyctl"
    on_path = shutil.which("flyctl") or shutil.which("fly")
    return ASKED or os.environ.get("FLYCTL") or on_path or (str(built) if built.exists() else None)


class Fly:
    """An emulator that serves, and flyctl pointed at it."""

    def __init__(self, where: dict[str, Any], folder: Path, program: str) -> None:
        self._program = program
        self._folder = folder
        self.where = where
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_COLOR": "1", **where["env"]}

    def through(self, url: str) -> Fly:
        """Return the same, asked through another address."""
        env = {name: value.replace(self.where["api"], url) for name, value in self.where["env"].items()}
        return Fly({**self.where, "env": env}, self._folder, self._program)

    def run(self, *args: str, code: int = 0, stdin: str = "") -> str:
        """Run flyctl; return what it printed to stdout, with stderr behind it where it failed."""
        done = self.ended(*args, stdin=stdin)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def ended(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run flyctl, whatever becomes of it; `env` goes over its variables, an empty one is left out."""
        merged = {name: value for name, value in {**self.env, **env}.items() if value}
        return subprocess.run(
            [self._program, *args],
            env=merged,
            cwd=self._folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def json(self, *args: str) -> Any:
        """Run flyctl with `--json`; return the document."""
        return json.loads(self.run(*args, "--json"))

    def image(self, reference: str, command: str, env: dict[str, str] | None = None) -> None:
        """Add an image."""
        words = tuple(shlex.split(command))
        Images(self._folder / "state").add(reference, Entry(command=words, env=env or {}))

    def toml(self, app: str, *, deploy: str = "", check: str = "/health", more: str = "") -> str:
        """Write a fly.toml; return its path."""
        path = self._folder / f"{app}-{next(_NUMBERS)}.toml"
        path.write_text(TOML.format(app=app, deploy=deploy, check=check) + more, encoding="utf-8")
        return str(path)

    def deploy(self, app: str, tag: str, *options: str, code: int = 0, **toml: str) -> str:
        """Deploy an image to an app, with a fly.toml of what `toml` takes."""
        image = ("--image", f"registry.fly.io/{app}:{tag}")
        return self.run("deploy", "-c", self.toml(app, **toml), *image, *(options or QUIET), code=code)

    def app(self, name: str) -> None:
        """Make an app with its images."""
        self.run("apps", "create", name)
        self.images(name)

    def images(self, name: str) -> None:
        """Make an app's three images: v1, v2, and one that dies at boot."""
        for tag in ("1", "2"):
            self.image(f"registry.fly.io/{name}:v{tag}", WEB, {"NUMBER": tag})
        self.image(f"registry.fly.io/{name}:broken", "sh -c 'echo no database; exit 1'")

    def machines(self, app: str) -> list[dict[str, Any]]:
        """List an app's machines."""
        return self.json("machine", "list", "-a", app)

    def tags(self, app: str) -> list[str]:
        """Return the tag every machine of an app names."""
        return sorted(each["image_ref"]["tag"] for each in self.machines(app))

    def stop(self, app: str) -> None:
        """Stop an app's machines, and wait for it."""
        for each in self.machines(app):
            self.run("machine", "stop", each["id"], "-a", app, "--wait-timeout", "10s")

    def url(self, app: str) -> str:
        """Say where an app's edge listens."""
        return self.json("status", "-a", app)["AppURL"]


@contextmanager
def serving(folder: Path, program: str, *more: str) -> Generator[Fly]:
    """Run `fly-emulator serve` in a folder; without addresses, so that flyctl asks no DNS server."""
    serve = (sys.executable, "-m", "fly_emulator", "serve", "--port", "0", "--no-addresses", "--json")
    command = [*serve, *more]
    with (
        (folder / "log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, "--state", str(folder / "state")], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield Fly(json.loads(process.stdout.readline()), folder, program)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
