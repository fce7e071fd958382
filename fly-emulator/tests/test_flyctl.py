"""The real flyctl creates apps, sets secrets and deploys to the emulator. `make test-flyctl` runs this.

What takes long because flyctl waits (bluegreen: two times ten seconds) runs beside the rest, in `Beside`.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.request import urlopen

import pytest

from .flyctl import ASKED, NOT_ASKED, ONE, QUIET, ROOT, Fly, serving

pytestmark = pytest.mark.skipif(ASKED is None, reason=NOT_ASKED)


def ask(url: str, *, timeout: float = 20.0) -> dict[str, str]:
    with urlopen(f"{url}/env", timeout=timeout) as response:
        return json.loads(response.read())


def bluegreen(fly: Fly) -> tuple[set[str], list[str], list[str]]:
    """Deploy v2 over v1; return the versions that answered meanwhile, and the machines before and after."""
    fly.app("green")
    fly.deploy("green", "v1", *ONE)
    before = [each["id"] for each in fly.machines("green")]
    url, done, seen = fly.url("green"), Event(), set[str]()

    def watch() -> None:
        while not done.wait(0.05):
            seen.add(ask(url)["NUMBER"])

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            fly.deploy("green", "v2", deploy='strategy = "bluegreen"')
        finally:
            done.set()
        watching.result()
    assert ask(url)["NUMBER"] == "2"
    return seen, before, [each["id"] for each in fly.machines("green")]


def broken_bluegreen(fly: Fly) -> tuple[str, list[str]]:
    """Deploy by bluegreen what dies at boot; return what flyctl said and the machines' tags."""
    fly.app("blue")
    fly.deploy("blue", "v1")
    bluegreen = 'strategy = "bluegreen"\nwait_timeout = "2s"'
    said = fly.deploy("blue", "broken", deploy=bluegreen, code=1)
    return said, fly.tags("blue")


def broken_rolling(fly: Fly) -> tuple[str, list[str], str]:
    """Deploy by rolling what dies at boot; return what flyctl said, the tags, and the release's fate."""
    fly.app("crash")
    fly.deploy("crash", "v1")
    said = fly.deploy("crash", "broken", "--smoke-checks=true", code=1)
    return said, fly.tags("crash"), fly.json("releases", "-a", "crash")[0]["Status"]


def failing_check(fly: Fly) -> tuple[str, list[str], str, str]:
    """Deploy what never passes its check; return flyctl's words, tags, the release's fate, who answers."""
    fly.app("ill")
    fly.deploy("ill", "v1")
    said = fly.deploy("ill", "v2", *QUIET, "--wait-timeout", "2s", check="/nope", code=1)
    fate = fly.json("releases", "-a", "ill")[0]["Status"]
    return said, fly.tags("ill"), fate, ask(fly.url("ill"))["NUMBER"]


class Beside:
    """Runs the slow ones in threads of their own, from the first test on."""

    def __init__(self, fly: Fly) -> None:
        self._pool = ThreadPoolExecutor(4)
        self.bluegreen = self._pool.submit(bluegreen, fly)
        self.broken_bluegreen = self._pool.submit(broken_bluegreen, fly)
        self.broken_rolling = self._pool.submit(broken_rolling, fly)
        self.failing_check = self._pool.submit(failing_check, fly)

    def close(self) -> None:
        """Wait for all."""
        self._pool.shutdown()


@pytest.fixture(scope="module")
def fly(tmp_path_factory: pytest.TempPathFactory) -> Generator[Fly]:
    assert ASKED is not None
    with serving(tmp_path_factory.mktemp("fly"), ASKED) as served:
        yield served


@pytest.fixture(scope="module", autouse=True)
def beside(fly: Fly) -> Generator[Beside]:
    running = Beside(fly)
    yield running
    running.close()


def test_an_app_its_secrets_and_its_first_deploy(fly: Fly) -> None:
    assert fly.run("auth", "whoami").strip() == "emulator@localhost"
    fly.app("first")
    assert "first" in [each["Name"] for each in fly.json("apps", "list")]
    toml = fly.toml("first")
    assert "valid" in fly.run("config", "validate", "--strict", "-c", toml)
    fly.run("secrets", "import", "--stage", "-a", "first", stdin="KEY=one\nOTHER=with space\n")
    listed = fly.json("secrets", "list", "-a", "first")
    assert [(each["name"], each["status"]) for each in listed] == [("KEY", "Staged"), ("OTHER", "Staged")]
    assert {len(each["digest"]) for each in listed} == {16}
    fly.deploy("first", "v1")
    assert {each["status"] for each in fly.json("secrets", "list", "-a", "first")} == {"Deployed"}
    machines = fly.machines("first")
    assert [each["state"] for each in machines] == ["started", "started"]
    assert {check["status"] for each in machines for check in each["checks"]} == {"passing"}
    assert len({each["image_ref"]["digest"] for each in machines}) == 1
    env = ask(fly.url("first"))
    assert (env["NUMBER"], env["KEY"], env["OTHER"]) == ("1", "one", "with space")
    assert env["FLY_IMAGE_REF"] == "registry.fly.io/first:v1"
    assert [(each["Version"], each["Status"]) for each in fly.json("releases", "-a", "first")] == [
        (1, "complete")
    ]


def test_staged_secrets_reach_machines_with_the_next_deploy(fly: Fly) -> None:
    fly.app("hush")
    fly.run("secrets", "set", "KEY=one", "OTHER=x", "-a", "hush")
    fly.deploy("hush", "v1", *ONE)
    fly.run("secrets", "set", "--stage", "KEY=two", "-a", "hush")
    assert ask(fly.url("hush"))["KEY"] == "one"
    assert fly.json("secrets", "list", "-a", "hush")[0]["status"] == "Staged"
    # Asleep, because flyctl looks for ten seconds at what it has restarted, and cannot be told not to.
    fly.stop("hush")
    fly.run("secrets", "deploy", "-a", "hush")
    assert ask(fly.url("hush"))["KEY"] == "two"
    fly.stop("hush")
    fly.run("secrets", "unset", "OTHER", "-a", "hush")
    assert "OTHER" not in ask(fly.url("hush"))
    releases = fly.json("releases", "-a", "hush")
    assert [each["Version"] for each in releases] == [3, 2, 1]
    assert {(each["Status"], each["ImageRef"]) for each in releases} == {
        ("complete", "registry.fly.io/hush:v1")
    }


def test_a_rolling_deploy_and_a_roll_back_by_the_old_image(fly: Fly) -> None:
    fly.app("roll")
    fly.deploy("roll", "v1")
    before = [each["id"] for each in fly.machines("roll")]
    for tag, number, options in (("v2", "2", QUIET), ("v1", "1", (*QUIET, "--strategy", "immediate"))):
        fly.deploy("roll", tag, *options)
        assert fly.tags("roll") == [tag, tag]
        assert ask(fly.url("roll"))["NUMBER"] == number
    assert sorted(each["id"] for each in fly.machines("roll")) == sorted(before)
    status = fly.json("status", "-a", "roll")
    assert (status["Version"], status["Status"], len(status["Machines"])) == (3, "deployed", 2)
    # Scaled up, down, and gone.
    fly.run("scale", "count", "3", "-y", "-a", "roll")
    assert len(fly.machines("roll")) == 3
    fly.run("scale", "count", "1", "-y", "-a", "roll")
    assert len(fly.machines("roll")) == 1
    fly.run("apps", "destroy", "roll", "-y")
    assert "roll" not in [each["Name"] for each in fly.json("apps", "list")]


def test_an_image_that_nobody_pushed_is_not_deployed(fly: Fly) -> None:
    fly.app("absent")
    said = fly.deploy("absent", "v9", code=1)
    assert 'could not find image "registry.fly.io/absent:v9"' in said
    assert fly.json("releases", "-a", "absent") in ([], None)


def test_a_failing_check_fails_the_deploy_and_leaves_the_other_machine(beside: Beside) -> None:
    said, tags, status, number = beside.failing_check.result()
    assert "health checks" in said
    assert tags == ["v1", "v2"]
    assert (status, number) == ("failed", "1")


def test_a_release_command_is_run_and_its_failure_leaves_the_old_version(fly: Fly, tmp_path: Path) -> None:
    fly.app("migrate")
    mark = tmp_path / "migrated"
    fly.deploy("migrate", "v1", *ONE, deploy=f"release_command = \"sh -c 'echo $RELEASE_COMMAND > {mark}'\"")
    assert mark.read_text(encoding="utf-8") == "1\n"
    fails = "release_command = \"sh -c 'echo no such table; exit 7'\""
    said = fly.deploy("migrate", "v2", *ONE, deploy=fails, code=1)
    assert "exited with non-zero status of 7" in said
    assert "no such table" in said
    assert fly.tags("migrate") == ["v1"]
    assert ask(fly.url("migrate"))["NUMBER"] == "1"


def test_a_machine_check_that_fails_fails_the_deploy(fly: Fly) -> None:
    fly.app("probe")
    fly.deploy("probe", "v1", *ONE)
    check = (
        '[[http_service.machine_checks]]\ncommand = ["sh", "-c", "echo at $FLY_TEST_MACHINE_IP; exit {}"]\n'
    )
    fly.deploy("probe", "v2", *ONE, more=check.format(0))
    said = fly.deploy("probe", "v1", *ONE, more=check.format(4), code=1)
    assert "exited with non-zero status of 4" in said
    assert "at fdaa:" in said


def test_the_fly_toml_that_is_deployed_is_valid(fly: Fly) -> None:
    deployed = str(ROOT / "agent-backend" / "fly.toml")
    assert "Configuration is valid" in fly.run("config", "validate", "--strict", "-c", deployed)


def test_a_deploy_to_a_sleeping_app_checks_nothing(fly: Fly) -> None:
    """A bug of flyctl's (superfly/flyctl#4707): the broken image is deployed with success."""
    fly.app("asleep")
    fly.deploy("asleep", "v1", *ONE)
    fly.stop("asleep")
    fly.deploy("asleep", "broken", *ONE)
    assert [each["state"] for each in fly.machines("asleep")] == ["stopped"]
    with pytest.raises(OSError, match=r"50\d|timed out"):
        ask(fly.url("asleep"), timeout=1.0)
    fly.deploy("asleep", "v2", *ONE)
    assert ask(fly.url("asleep"))["NUMBER"] == "2"


def test_the_log_is_read(fly: Fly) -> None:
    fly.app("talk")
    fly.deploy("talk", "v1", *ONE)
    assert len(fly.machines("talk")) == 1
    assert "listening" in fly.run("logs", "--no-tail", "-a", "talk")


def test_an_image_that_dies_at_boot_fails_a_rolling_deploy(beside: Beside) -> None:
    said, tags, status = beside.broken_rolling.result()
    assert "the app appears to be crashing" in said
    assert "no database" in said
    assert tags == ["broken", "v1"]
    assert status == "failed"


def test_an_image_that_dies_at_boot_leaves_no_green_machine(beside: Beside) -> None:
    said, tags = beside.broken_bluegreen.result()
    assert "could not get all green machines to be healthy" in said
    assert tags == ["v1", "v1"]


def test_a_bluegreen_deploy_is_never_without_an_answer(beside: Beside) -> None:
    seen, before, after = beside.bluegreen.result()
    assert {"1", "2"} == seen
    assert len(before) == len(after) == 1
    assert not set(before) & set(after)
