"""The deploy verbs with the real server, the local Fly and flyctl, or its stand-in (`stage.find`).

Releases that cannot stream or are too slow: `test_flyctl_broken_sequence.py`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import pytest

from myhealth_cli.deploy import doctor
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.world import World

from .installed import Ended
from .stage import Stage, find, stage

FLYCTL = find()
pytestmark = pytest.mark.timeout(300)
APP = deployed("staging").app


@pytest.fixture(scope="module")
def fly(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with stage(tmp_path_factory.mktemp("stage"), FLYCTL) as made:
        secrets = str(made.folder / "staging.env")
        done(made.run("setup", "staging", "--from", secrets), "create the app", "set secrets")
        again = made.run("setup", "staging", "--from", secrets)
        assert "nothing to do" in again.out
        done(deploy(made, made.image("a")))
        yield made


def deploy(fly: Stage, image: str, *more: str) -> Ended:
    """Deploy to staging, as quickly as it goes."""
    return fly.run("deploy", "staging", "--image", image, *common(fly), "--no-ha", *(more or ("--no-smoke",)))


def common(fly: Stage, environment: str = "staging") -> tuple[str, ...]:
    return ("--url", fly.url(environment), "--bake", "0", "--ready", "8", "--json")


def done(ended: Ended, *told: str) -> None:
    assert ended.code == 0, ended
    for each in told:
        assert each in ended.err


def went_back(fly: Stage, ended: Ended, release: str, *says: str) -> None:
    """See that it failed for that reason, and that what was proven before serves again."""
    assert ended.code == 1, ended
    outcome = ended.json()
    assert not outcome["ok"]
    assert outcome["recovered"], outcome
    for each in says:
        assert each in outcome["error"], outcome["error"]
    assert f"release {release}" in outcome["left"]
    assert fly.release() == release
    print(f"{outcome['error'][:80]}: safe after {outcome['seconds_to_safe']:.1f} s")  # noqa: T201 - asked for


def test_a_migration_that_fails_changes_no_machine(fly: Stage) -> None:
    folder = fly.folder / "bin"
    folder.mkdir()
    program = folder / "agent-backend"
    program.write_text("#!/bin/sh\necho 'the migration fails'\nexit 1\n", "utf-8")
    program.chmod(0o755)
    good = f"{shlex.quote(sys.executable)} -m agent_backend serve"
    image = fly.program("migration", good, PATH=f"{folder}:{os.environ['PATH']}")
    ended = deploy(fly, image)
    went_back(fly, ended, "a", "release command failed")
    again = [each["step"]["step"] for each in ended.json()["steps"] if each["recovery"]]
    assert "deploy_image" not in again, "no machine was changed"


def test_another_image_that_was_pulled_instead_is_found(fly: Stage) -> None:
    other = fly.image("other", NUMBER="2")
    fly.image("wanted", NUMBER="3")
    fly.mispull("wanted", other)
    went_back(fly, deploy(fly, f"registry.fly.io/{APP}:wanted"), "a", "instead of")


def test_promotion_by_digest_and_rollback(fly: Stage) -> None:
    image = fly.image("b")
    # Ten people talk all the while: every turn is answered, by one release or the other.
    talk = ("load", fly.url(), "--clients", "10", "--turns", "60")
    words = ("deploy", "staging", "--image", image, *common(fly), "--no-ha", "--no-smoke")
    with fly.start(*words) as deploying:
        while deploying.poll() is None:
            assert fly.run(*talk).code == 0
        assert deploying.returncode == 0
    assert fly.release() == "b"
    done(fly.run("setup", "production", "--from", str(fly.folder / "production.env")), "create the app")
    promotion = ("promote", *common(fly, "production"), "--staging-url", fly.url(), "--no-ha", "--no-smoke")
    done(fly.run(*promotion))
    there, here = fly.machines("production"), fly.machines()
    assert there[0].image_ref.digest == here[0].image_ref.digest
    assert fly.release("production") == "b"
    refused = fly.run("rollback", *common(fly, "production"))
    assert refused.code == 2, "production has had one image only"
    done(fly.run("rollback", "--environment", "staging", *common(fly)))
    assert fly.release() == "a"
    assert [each.release for each in fly.machines()[0].good] == ["a"]


def test_a_deploy_that_is_killed_is_said_again_and_converges(fly: Stage) -> None:
    # Its migration waits for us, and flyctl for the migration: it is at work for as long as we like.
    folder = fly.folder / "slowly"
    folder.mkdir()
    begun, go_on = folder / "begun", folder / "go-on"
    program = folder / "agent-backend"
    program.write_text(f"#!/bin/sh\ntouch {begun}\nuntil [ -e {go_on} ]; do sleep 0.05; done\n", "utf-8")
    program.chmod(0o755)
    image = fly.program(
        "c", f"{sys.executable} -m agent_backend serve", PATH=f"{folder}:{os.environ['PATH']}"
    )
    words = ("deploy", "staging", "--image", image, *common(fly), "--no-ha", "--no-smoke")
    with fly.start(*words) as running:
        while not begun.exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    # flyctl outlives it, and keeps its lock.
    first = fly.run(*words)
    assert first.code == 2, first
    assert "another process on this machine is deploying" in first.err
    go_on.touch()
    ends = time.monotonic() + 60
    while (ended := fly.run(*words)).code == 2 and time.monotonic() < ends:
        time.sleep(0.1)
    done(ended)
    assert fly.release() == "c"
    assert fly.machines()[0].good[0].release == "c"


def test_a_deploy_from_elsewhere_is_not_disturbed(fly: Stage) -> None:
    machine = fly.machines()[0].id
    url = f"{fly.fly_env['FLY_FLAPS_BASE_URL']}/v1/apps/{APP}/machines/{machine}/metadata/myhealth_lock"
    token = {"Authorization": f"Bearer {fly.fly_env['FLY_API_TOKEN']}", "Content-Type": "application/json"}
    body = msgspec.json.encode({"value": f"github-7 {time.time() + 600:.0f}"})
    urlopen(Request(url, data=body, headers=token), timeout=10).close()
    refused = deploy(fly, fly.image("d"))
    assert refused.code == 2, refused
    assert refused.json()["error"] == f"github-7 is deploying {APP}"
    body = msgspec.json.encode({"value": f"github-7 {time.time() - 1:.0f}"})
    urlopen(Request(url, data=body, headers=token), timeout=10).close()
    done(deploy(fly, fly.image("d")))
    assert not any("myhealth_lock" in each.config.metadata for each in fly.machines())


def test_bluegreen_carries_the_notes_over_and_frees_the_lock(fly: Stage) -> None:
    before = fly.machines()[0]
    # Its two waits of ten seconds: the stand-in need not keep them here, where nobody talks meanwhile.
    quickly = fly.without("FLY_EMULATOR_MINUTE", FLY_EMULATOR_MINUTE="3")
    with fly.strategy("bluegreen"):
        done(deploy(quickly, fly.image("e")))
    after = fly.machines()
    assert [each.id for each in after] != [before.id]
    assert [each.release for each in after[0].good] == ["e", *[each.release for each in before.good]][:5]
    assert not any("myhealth_lock" in each.config.metadata for each in after)
    assert fly.release() == "e"


def test_what_is_missing_is_said_before_anything_changes(fly: Stage) -> None:
    before = [each.version for each in fly.releases()]
    none = deploy(fly, f"registry.fly.io/{APP}:none")
    assert (none.code, none.json()["changed"]) == (2, False)
    assert "there is no image" in none.err
    for name, says in {
        "FLY_API_TOKEN": "not logged in to Fly",
        "CANARY_PASSWORD": "the canary user is unknown: CANARY_PASSWORD not set",
    }.items():
        refused = deploy(fly.without(name), f"registry.fly.io/{APP}:a")
        assert refused.code == 2, refused
        assert says in refused.err
    wrong = deploy(fly.without("CANARY_PASSWORD", CANARY_PASSWORD="wrong"), f"registry.fly.io/{APP}:a")
    assert (wrong.code, "cannot sign in" in wrong.err) == (2, True)
    nowhere = fly.without("FLY_API_BASE_URL", FLY_API_BASE_URL="http://127.0.0.1:1")
    away = nowhere.run("status", "staging")
    assert (away.code, "myhealth-agents-staging cannot be read" in away.err) == (2, True)
    assert [each.version for each in fly.releases()] == before


async def test_doctor_finds_what_is_there(fly: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**fly.fly_env, "FLYCTL": str(FLYCTL)}.items():
        monkeypatch.setenv(name, value)
    # Not those that ask the public addresses: a test stays on loopback.
    looked = ("login", "staging.app", "staging.secrets", "staging.running", "staging.region")
    items = [each for each in doctor.items() if each.id in looked]
    found = await doctor.examine(World(fly.checkout, offline=False), items)
    assert [(each.id, each.state) for each in found] == [(name, "ok") for name in looked], found


def test_a_bounded_load(fly: Stage) -> None:
    ended = fly.run("load", fly.url(), "--clients", "4", "--turns", "12", "--json")
    assert ended.code == 0, ended
    result = ended.json()
    assert (result["turns"], result["answered"], result["failed"]) == (12, 12, {})
    assert 0 < result["first_word"]["p50"] <= result["first_word"]["p99"]


def test_no_secret_is_printed_or_kept(fly: Stage) -> None:
    secrets = [
        line.partition("=")[2] for line in (fly.folder / "staging.env").read_text("utf-8").splitlines()
    ]
    kept = list((fly.checkout / ".local" / "deploys").iterdir())
    assert any(each.name == f"{APP}.jsonl" for each in kept)
    text = "".join(Path(each).read_text("utf-8") for each in kept)
    status = fly.run("status", "staging")
    for secret in (*secrets, fly.env["CANARY_PASSWORD"], fly.fly_env["FLY_API_TOKEN"]):
        if not secret.startswith("http"):
            assert secret not in text + status.out + status.err


def test_the_log_is_shown_and_followed_until_ctrl_c(fly: Stage) -> None:
    machine = fly.machines()[0].id
    shown = fly.run("logs", "staging", "--no-follow", "--machine", machine)
    assert (shown.code, machine in shown.out) == (0, True), shown
    assert '"instance"' in fly.run("logs", "staging", "--no-follow", "--json").out
    other = fly.run("logs", "staging", "--no-follow", "--machine", "other")
    assert other.code == 2
    assert other.err.splitlines() == [f"myhealth: {APP} has no machine other", f"  those it has: {machine}"]
    words = [sys.executable, "-m", "myhealth_cli", "logs", "staging"]
    with subprocess.Popen(
        words, cwd=fly.checkout, env=fly.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        assert following.poll() is None
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
