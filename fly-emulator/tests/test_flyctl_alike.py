"""The stand-in for flyctl beside flyctl itself: each says the same to an emulator of its own.

How commands end, what they say went wrong, their JSON, what they ask the APIs to change and what runs in the
end must be the same but for ids, names and times. Skipped where there is no flyctl to compare with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from difflib import unified_diff
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

import pytest

from .flyctl import MISSING, STAND_IN, Fly, find_flyctl, serving
from .recorder import Asked, recording

FLYCTL = find_flyctl()
pytestmark = [pytest.mark.skipif(FLYCTL is None, reason=MISSING), pytest.mark.timeout(180)]
MINUTE = "30s"
"""For the stand-in: its own waits are half as long then, as are the pauses in which a crash is repeated."""
ALL = ("--yes", "--dns-checks=false")
QUIET = (*ALL, "--smoke-checks=false")
ONE = (*QUIET, "--ha=false")
IDS = re.compile(
    r"\b(?:[0-9a-f]{14}|release-[0-9a-f]{16}|[0-9A-Z]{26}|[a-z]+-[a-z]+-\d{1,5}|fdaa:[0-9a-f:]+|1[78]\d{8}"
    r"|[0-9a-f]{16}|http://127\.0\.0\.1:\d+|\d{4}-\d\d-\d\dT[\d:.]+Z)(?!\w)"
)
"""Of machines, releases, versions, launches; names, digests and addresses; times."""
FILES = re.compile(r"/\S+\.toml")
LEFT_OUT = frozenset(("events", "checks", "min_secrets_version", "fly_flyctl_version", "flyctl_version"))
"""What depends on the moment, or says which program it was."""
OF_LAUNCH = ("region", "skip_launch", "skip_service_registration", "lease_ttl")
Play: TypeAlias = Callable[["Teller"], None]


class Teller:
    """Says commands to one of the two and notes what becomes of them."""

    def __init__(self, fly: Fly, app: str) -> None:
        self.fly = fly
        self.app = app
        self.told: list[Any] = []

    def say(self, *words: str, stdin: str = "", **env: str) -> None:
        """Run a command; note how it ended, its JSON, and what went wrong."""
        ended = self.fly.ended(*words, stdin=stdin, **env)
        out = json.loads(ended.stdout) if "--json" in words and ended.returncode == 0 else None
        _, _, error = ended.stderr.partition("Error: ")
        first = error.strip().partition("\n")[0]
        self.told.append(
            normal({"said": " ".join(words), "code": ended.returncode, "json": out, "error": first})
        )

    def deploy(self, tag: str, *options: str, toml: str = "", check: str = "/health") -> None:
        """Deploy an image."""
        config = self.fly.toml(self.app, deploy=toml, check=check)
        image = f"registry.fly.io/{self.app}:{tag}"
        ended = self.fly.ended("deploy", "--app", self.app, "--config", config, "--image", image, *options)
        _, _, error = ended.stderr.partition("Error: ")
        first = error.partition("\nSmoke checks for")[0].strip()
        self.told.append(normal({"deployed": tag, "code": ended.returncode, "error": first}))

    def fleet(self) -> None:
        """Note what runs, and what became of the releases."""
        app = ("--app", self.app, "--json")
        machines = json.loads(self.fly.ended("machine", "list", *app).stdout)
        # A machine that dies at boot is now starting, now between two starts.
        of_image = sorted(
            (
                each["image_ref"]["tag"],
                each["config"]["metadata"]["fly_release_version"],
                "" if each["image_ref"]["tag"] == "broken" else each["state"],
            )
            for each in machines
        )
        self.told.append(of_image)
        self.say("releases", *app)

    def ids(self) -> list[str]:
        """Return the machines."""
        return [each["id"] for each in self.fly.machines(self.app)]

    def stop(self) -> None:
        """Stop the machines."""
        for each in self.ids():
            self.say("machine", "stop", each, "--app", self.app, "--wait-timeout", "10s")


def normal(value: Any) -> Any:
    """Take out ids and times, and what depends on the moment."""
    if isinstance(value, dict):
        return {key: normal(each) for key, each in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [normal(each) for each in value]
    if isinstance(value, str):
        # flyctl has two clocks of one length here, and either may be the first.
        value = value.replace("context deadline exceeded\ncould not", "wait timeout\ncould not")
    return IDS.sub("ID", FILES.sub("FILE", value)) if isinstance(value, str) else value


def changes(asked: list[Asked]) -> list[Any]:
    """Return what was asked to be changed, without renewals of leases and the report of a build."""
    held, found = set[str](), list[Any]()
    for line, body in asked:
        method, _, path = line.partition(" ")
        if path.startswith(("/graphql", "/api/v1/builds")):
            continue
        if "/lease" in path:
            machine = path.partition("/lease")[0]
            if method == "POST" and machine in held:
                continue
            (held.add if method == "POST" else held.discard)(machine)
        found.append(normal([line, essence(path, body)]))
    return found


def essence(path: str, body: Any) -> Any:
    """Return what both must ask for alike; a configuration is compared as Fly keeps it."""
    if isinstance(body, dict) and "config" in body:
        config = {key: body["config"].get(key) for key in ("image", "env", "metadata")}
        return {**{key: body.get(key) or None for key in OF_LAUNCH}, **config}
    if path == "/api/v1/releases":
        return {key: body[key] for key in ("app_name", "image", "strategy")}
    return body


def beginning(tell: Teller) -> None:
    """Make an app, set secrets, deploy to two machines twice, stop and start them."""
    app = ("--app", tell.app)
    tell.say("auth", "whoami")
    tell.say("apps", "create", tell.app, "--yes")
    tell.say("releases", *app, "--image", "--json")
    tell.say("secrets", "list", *app, "--json")
    tell.say("secrets", "import", "--stage", *app, stdin='A=one\nB="with space" # why\n\nC="""x\ny"""\n')
    tell.say("secrets", "list", *app, "--json")
    tell.say("config", "validate", "--strict", "--config", tell.fly.toml(tell.app))
    tell.deploy("v1", *QUIET, "--env", "RELEASE=one")
    tell.say("status", *app, "--json")
    tell.say("machine", "list", *app, "--json")
    tell.say("secrets", "list", *app, "--json")
    tell.deploy("v2", *QUIET, "--env=RELEASE=two")
    tell.stop()
    tell.say("machine", "start", *tell.ids(), *app)
    tell.say("machine", "list", *app, "--json")
    tell.deploy("v1", *QUIET, toml='strategy = "immediate"')
    tell.fleet()


def migration(tell: Teller) -> None:
    """Let a release command fail (nothing changes), succeed, and be left out."""
    tell.deploy("v1", *ONE)
    fails = "release_command = \"sh -c 'echo no such table; exit 7'\""
    tell.deploy("v2", *ONE, toml=fails)
    tell.fleet()
    tell.deploy("v2", *ONE, toml="release_command = \"sh -c 'exit 0'\"")
    tell.deploy("v1", *ONE, "--skip-release-command", toml=fails)
    tell.fleet()


def crash(tell: Teller) -> None:
    """Deploy what dies at boot: it is found on the first of two machines, and left there."""
    tell.deploy("v1", *QUIET)
    tell.deploy("broken", *ALL)
    tell.fleet()


def asleep(tell: Teller) -> None:
    """Deploy what dies at boot to a machine that sleeps: nobody looks, it succeeds."""
    tell.deploy("v1", *ONE)
    tell.stop()
    tell.deploy("broken", *ALL)
    tell.fleet()


def ill(tell: Teller) -> None:
    """Deploy what never passes its check."""
    tell.deploy("v1", *QUIET)
    tell.deploy("v2", *QUIET, "--wait-timeout", "2s", check="/nope")
    tell.fleet()


def bluegreen(tell: Teller) -> None:
    """Replace a machine; what is noted on the old one is carried over."""
    tell.deploy("v1", *ONE)
    note(tell, "noted", "kept")
    tell.deploy("v2", *QUIET, toml='strategy = "bluegreen"')
    tell.fleet()
    tell.say("machine", "list", "--app", tell.app, "--json")


def broken_bluegreen(tell: Teller) -> None:
    """Raise green machines that die at boot: they are removed, and blue serves on."""
    tell.deploy("v1", *QUIET)
    tell.deploy("broken", *QUIET, toml='strategy = "bluegreen"\nwait_timeout = "6s"')
    tell.fleet()


def machines(tell: Teller) -> None:
    """Take a machine out of service by hand, as the deploy tool does with one that is left over."""
    app = ("--app", tell.app)
    tell.deploy("v1", *QUIET)
    first, second = tell.ids()
    tell.deploy("v2", *QUIET, "--exclude-machines", second)
    tell.fleet()
    tell.say("machine", "cordon", first, *app)
    tell.say("machine", "list", *app, "--json")
    tell.say("machine", "uncordon", first, *app)
    tell.say("machine", "destroy", first, *app)
    stop = ("--signal", "SIGTERM", "--timeout", "3", "--wait-timeout", "10s")
    tell.say("machine", "stop", first, *app, *stop)
    tell.say("machine", "destroy", first, *app)
    tell.say("machine", "destroy", second, "--force", *app)
    tell.say("machine", "destroy", second, *app)
    tell.say("auth", "token", "--quiet")
    tell.fleet()


def note(tell: Teller, key: str, value: str) -> None:
    """Set metadata of the first machine."""
    env = tell.fly.where["env"]
    url = f"{env['FLY_FLAPS_BASE_URL']}/v1/apps/{tell.app}/machines/{tell.ids()[0]}/metadata/{key}"
    headers = {"Authorization": f"Bearer {env['FLY_API_TOKEN']}", "Content-Type": "application/json"}
    urlopen(Request(url, json.dumps({"value": value}).encode(), headers, method="POST"), timeout=20).close()


def refusals(tell: Teller) -> None:
    """Say what cannot be done."""
    app = ("--app", tell.app)
    tell.say("apps", "create", tell.app, "--yes")
    tell.say("machine", "list", "--app", "nope", "--json")
    tell.say("status", "--app", "nope", "--json")
    tell.say("releases", "--app", "nope", "--json")
    tell.say("machine", "start", "nope", *app)
    tell.say("machine", "stop", "nope", *app)
    tell.say("machine", "list", "--json")
    tell.say("secrets", "import", "--stage", *app)
    tell.say("secrets", "import", "--stage", *app, stdin="nonsense\n")
    tell.say("config", "validate", "--strict", "--config", "none.toml")
    tell.say("tokens", "create", "deploy", *app, "--expiry", "720h")
    tell.say("tokens", "create", "deploy", "--app", "nope")
    tell.say("nonsense")
    tell.say("apps", "list", "--nonsense")
    tell.deploy("absent", *QUIET)
    for words in (("auth", "whoami"), ("auth", "token"), ("machine", "list", *app, "--json")):
        tell.say(*words, FLY_API_TOKEN="")
        tell.say(*words, FLY_API_TOKEN="wrong")
    tell.fleet()


PLAYS: tuple[Play, ...] = (
    *(beginning, migration, crash, asleep, ill),
    *(bluegreen, broken_bluegreen, machines, refusals),
)
Results: TypeAlias = dict[str, tuple[Future[list[Any]], Future[list[Any]]]]


def perform(fly: Fly, play: Play) -> list[Any]:
    """Play it; return what was told and what was asked for."""
    app = play.__name__.replace("_", "-")
    with recording(fly.where["api"]) as recorder:
        through = fly.through(recorder.url)
        if play is beginning:
            through.images(app)
        else:
            through.app(app)
        tell = Teller(through, app)
        play(tell)
    return [*tell.told, *changes(recorder.asked)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Generator[Results]:
    """Let both play everything, side by side: flyctl waits for long, and does little meanwhile."""
    assert FLYCTL is not None
    with ExitStack() as stack:
        real = stack.enter_context(serving(tmp_path_factory.mktemp("real"), FLYCTL))
        ours = stack.enter_context(serving(tmp_path_factory.mktemp("ours"), STAND_IN, "--minute", MINUTE))
        pool = stack.enter_context(ThreadPoolExecutor(2 * len(PLAYS)))
        yield {
            each.__name__: (pool.submit(perform, real, each), pool.submit(perform, ours, each))
            for each in PLAYS
        }


@pytest.mark.parametrize("play", [each.__name__ for each in PLAYS])
def test_both_do_the_same(results: Results, play: str) -> None:
    real, ours = (json.dumps(each.result(), indent=1, sort_keys=True).splitlines() for each in results[play])
    if differences := list(unified_diff(real, ours, "flyctl", "stand-in", lineterm="", n=8)):
        pytest.fail("\n".join(differences), pytrace=False)
