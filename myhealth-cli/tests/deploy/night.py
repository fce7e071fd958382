"""A night on call at the local Fly: a shell in the checkout, and what has happened to the world by then."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen
from uuid import UUID

import asyncpg

from myhealth_cli.deploy import state
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.probe import CANARY

from .installed import Ended
from .stage import Stage

_BACK: Final = UUID("01900000-0000-7000-8000-00000000e1a5")
"""A user who was erased, and comes back with the backup."""
_WORD: Final = r"(?<![\w-]){}(?![\w-])"


class Night:
    """Types commands. `shell` is the shell's environment: what a command exports stays."""

    def __init__(self, stage: Stage, program: Path) -> None:
        self.stage = stage
        self.shell = dict(stage.env)
        self.flyctl_is_real = program.name != "flyctl-emulator"
        self._tools = stage.folder / "tools"
        self._tools.mkdir()
        for name in ("fly", "flyctl"):
            (self._tools / name).symlink_to(program)
        self.shell["PATH"] = f"{self._tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        (stage.checkout / ".venv").symlink_to(Path(sys.executable).parent.parent)
        self.images = {name: stage.image(name) for name in ("one", "two")}
        self.next = "one"
        self.image = self.name = self.file = ""
        self.number = 0

    def begin(self) -> None:
        """Begin where first-deployment.md ends: release one on both, proven, and the canary's files."""
        folder = Path(self.shell["HOME"]) / "myhealth"
        folder.mkdir()
        lines = "".join(f"{name}='{self.shell.pop(name)}'\n" for name in CANARY)
        for environment in ("staging", "production"):
            (folder / f"canary.{environment}.env").write_text(lines, "utf-8")
            self.write(environment)
            assert self.type(f"myhealth setup {environment} --from {environment}.env").code == 0
        canary = "set -a; . ~/myhealth/canary.staging.env; set +a"
        for command in (canary, "myhealth deploy staging", "myhealth promote"):
            ended = self.type(command)
            assert ended.code == 0, ended

    def type(self, command: str, stdin: str = "") -> Ended:
        """Type a command of a page; what a person would put in is put in."""
        after = self.stage.folder / "after"
        script = f"{self.filled(command)}\ncode=$?\nenv -0 > {after}\nexit $code"
        ended = subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{script}"],
            cwd=self.stage.checkout,
            env=self.shell,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        if " NEW" not in command:
            pairs = after.read_text("utf-8").split("\0")
            self.shell = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        else:
            self.shell["NEW"] = stdin.strip()  # a shell's own variable, for the next line
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def filled(self, command: str) -> str:
        """Put in what a page leaves to the person, and what differs here."""
        text = command.replace("ENVIRONMENT=production", "ENVIRONMENT=development")
        for environment in ("staging", "production"):
            if (address := deployed(environment).url) in text:
                text = text.replace(address, self.stage.url(environment))
        values = {"IMAGE": self.image, "NAME": self.name, "FILE": self.file, "N": str(self.number)}
        for placeholder, value in values.items():
            text = re.sub(_WORD.format(placeholder), value, text)
        if re.search(_WORD.format("ID"), text):
            text = re.sub(_WORD.format("ID"), self.machine("production").id, text)
        text = re.sub(r"rollback 7$", f"rollback {self.number}", text)
        return " ".join((text, *self._here(text)))

    def _here(self, command: str) -> tuple[str, ...]:
        """Return what the local stage needs besides."""
        match command.split():
            case ["fly", "deploy", *_]:
                return ("--dns-checks=false", "--smoke-checks=false", "--yes")
            case ["myhealth", "doctor"]:
                return ("--offline",)
            case ["myhealth", "deploy", "staging", *rest]:
                image = () if "--image" in rest else ("--image", self.images[self.next])
                return (*image, *self._quick("staging"), "--no-ha", "--no-smoke")
            case ["myhealth", "promote", *_]:
                staging = ("--staging-url", self.stage.url())
                return (*self._quick("production"), *staging, "--no-ha", "--no-smoke")
            case ["myhealth", "rollback", *rest]:
                return self._quick("staging" if "staging" in rest else "production")
            case _:
                return ()

    def _quick(self, environment: str) -> tuple[str, ...]:
        return ("--url", self.stage.url(environment), "--bake", "0", "--ready", "10")

    def machine(self, environment: str) -> state.Machine:
        """Return the app's machine."""
        [found] = self.stage.machines(environment)
        return found

    def to(self, number: int | None) -> None:
        """Let N be a release of production; None: its newest."""
        self.number = number or max(each.version for each in self.stage.releases("production"))

    def is_(self, name: str) -> None:
        """Let IMAGE be the release of that name, with its digest."""
        told = self.stage.flyctl("releases", "--app", deployed("production").app, "--image", "--json")
        refs = [str(each["ImageRef"]) for each in json.loads(told)]
        self.image, self.name = next(each for each in refs if f":{name}@" in each), name

    def runs(self) -> None:
        """Let IMAGE and NAME be what production runs."""
        found = self.machine("production")
        self.image, self.name = found.image_ref.exact, found.release

    def secret(self, environment: str, name: str) -> str:
        """Return the value of a secret."""
        lines = (self.stage.folder / f"{environment}.env").read_text("utf-8").splitlines()
        return next(each.partition("=")[2] for each in lines if each.startswith(f"{name}="))

    def write(self, environment: str, name: str = "") -> None:
        """Write an environment's secrets from the password manager into a file of the checkout."""
        name = name or f"{environment}.env"
        shutil.copy(self.stage.folder / f"{environment}.env", self.stage.checkout / name)
        self.file = name

    def sleep(self) -> None:
        """Let production be asleep."""
        self.stage.flyctl(
            *("machine", "stop", self.machine("production").id, "--app", deployed("production").app),
            *("--wait-timeout", "20s"),
        )

    def break_asleep(self) -> None:
        """Deploy what dies at boot onto sleeping production, which nobody notices until somebody asks."""
        self.sleep()
        image = self.stage.program("crash", "sh -c 'echo no database; exit 1'")
        file = self.stage.checkout / "agent-backend" / "crash.toml"
        text = (self.stage.checkout / deployed("production").config).read_text("utf-8")
        file.write_text(text.replace("retries = 10", "retries = 1"), "utf-8")
        self.stage.flyctl(
            *("deploy", "--app", deployed("production").app, "--config", str(file), "--image", image),
            *("--env", "RELEASE=crash", "--skip-release-command", "--yes", "--dns-checks=false"),
        )
        try:
            urlopen(f"{self.stage.url('production')}/livez", timeout=30).close()
        except URLError:
            pass
        else:
            raise AssertionError("a server that dies at boot has answered")
        ends = time.monotonic() + 30
        while self.machine("production").state != "stopped":
            assert time.monotonic() < ends, self.machine("production")
            time.sleep(0.2)

    def erase_somebody(self) -> None:
        """Somebody was erased after the backup was made."""
        self._database("SELECT myhealth.begin_erasure($1, false)", _BACK)
        self._database(
            "UPDATE myhealth.erasures SET pending_user = NULL, erased_at = now(), completed_at = now()"
        )

    def restore(self) -> None:
        """Bring the backup back: with that user, and without the tombstone."""
        self._database("DELETE FROM myhealth.erasures")
        self._database(
            "INSERT INTO myhealth.profiles (user_id, time_zone, locale) VALUES ($1, 'UTC', 'en')", _BACK
        )

    def erased_again(self) -> None:
        """Wait until the server has erased that user again."""
        ends = time.monotonic() + 30
        while self._database("SELECT FROM myhealth.erasures WHERE completed_at IS NULL"):
            assert time.monotonic() < ends, "the erasure does not end"
            time.sleep(0.2)
        assert not self._database("SELECT FROM myhealth.profiles WHERE user_id = $1", _BACK)

    def _database(self, statement: str, *arguments: object) -> list[Any]:
        async def go() -> list[Any]:
            connection = await asyncpg.connect(self.secret("production", "DATABASE_URL"))
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(go())
