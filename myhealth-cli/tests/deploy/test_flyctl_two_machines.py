"""Two machines: every verb, and deploys that are killed with their flyctl while people talk. Minutes long.

LONG_DEPLOYS=1 plays them, with flyctl or its stand-in (`stage.find`).
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

import psutil
import pytest

from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.lock import LOCK
from myhealth_cli.tokens import Issuer

from . import kept
from .crowd import Crowd
from .installed import Ended
from .stage import Stage, find, speaking, stage

FLYCTL = find()
pytestmark = [
    pytest.mark.skipif("LONG_DEPLOYS" not in os.environ, reason="minutes long: LONG_DEPLOYS=1 runs it"),
    pytest.mark.timeout(600),
]
APP = deployed("staging").app
MARK = "fly_bluegreen_deployment_tag"
PEOPLE = 10

Raw: TypeAlias = list[dict[str, Any]]
"""Machines as the Machines API lists them."""


@pytest.fixture(scope="module")
def fly(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with stage(tmp_path_factory.mktemp("stage"), FLYCTL) as made:
        for environment in ("staging", "production"):
            secrets = str(made.folder / f"{environment}.env")
            assert made.run("setup", environment, "--from", secrets).code == 0
        serves(made, deploy(made, made.image("first")), "first")
        yield made


def common(fly: Stage, environment: str = "staging") -> tuple[str, ...]:
    return ("--url", fly.url(environment), "--bake", "0", "--ready", "8", "--json")


def deploying(fly: Stage, image: str) -> tuple[str, ...]:
    return ("deploy", "staging", "--image", image, *common(fly), "--no-smoke")


def deploy(fly: Stage, image: str) -> Ended:
    return again(fly, *deploying(fly, image))


def again(fly: Stage, *words: str) -> Ended:
    """Run a verb, and say it again while leases and locks of what was killed are held."""
    ended = fly.run(*words)
    for _ in range(20):
        if ended.code != 2:
            break
        ended = fly.run(*words)
    return ended


def serves(fly: Stage, ended: Ended, release: str, environment: str = "staging") -> None:
    """See that the verb succeeded; two machines and no other have this release, proven, and no lock."""
    assert ended.code == 0, ended
    found = fly.machines(environment)
    assert [each.release for each in found] == [release] * 2, ended
    assert [each.good[0].release for each in found] == [release] * 2
    assert [each.state for each in found] == ["started"] * 2
    assert not any(each.cordoned or LOCK in each.config.metadata for each in found)
    assert fly.release(environment) == release


def raw(fly: Stage) -> Raw:
    """Ask the Machines API itself, which is quicker than flyctl; without a release command's machine."""
    url = f"{fly.fly_env['FLY_FLAPS_BASE_URL']}/v1/apps/{APP}/machines"
    request = Request(url, headers={"Authorization": f"Bearer {fly.fly_env['FLY_API_TOKEN']}"})
    with urlopen(request, timeout=10) as response:
        found = json.loads(response.read())
    return [each for each in found if each["config"]["metadata"]["fly_process_group"] == "app"]


@asynccontextmanager
async def people(fly: Stage) -> AsyncGenerator[Crowd]:
    """Let ten people talk meanwhile; every question of theirs is answered, once, at the first try."""
    issuer = Issuer(fly.env["SUPABASE_URL"], fly.env["SUPABASE_PUBLISHABLE_KEY"])
    async with Crowd(await asyncio.to_thread(fly.url), issuer, PEOPLE) as crowd:
        yield crowd
    assert len(crowd.questions) > PEOPLE
    assert [turn for turn in crowd.turns if not turn.answered] == []
    there = await kept.turns(fly)
    for turn in crowd.turns:
        assert turn.text == there[turn.id].text, turn


async def until(fly: Stage, moment: Callable[[Raw], bool]) -> Raw:
    """Wait for a moment of a deploy."""
    async with asyncio.timeout(60):
        while not moment(found := await asyncio.to_thread(raw, fly)):
            await asyncio.sleep(0.02)
    return found


async def killed(fly: Stage, image: str, moment: Callable[[Raw], bool]) -> Raw:
    """Start a deploy and kill it with its flyctl, as a computer that fails does; return what is left."""
    words = await asyncio.to_thread(deploying, fly, image)
    with fly.start(*words) as running:
        await until(fly, moment)
        flyctls = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        for each in flyctls:
            each.kill()
        psutil.wait_procs(flyctls, timeout=10)
    return await asyncio.to_thread(raw, fly)


def made_green(found: Raw) -> bool:
    return sum(each["cordoned"] for each in found) == 2


def half_made(found: Raw) -> bool:
    return any(each["cordoned"] for each in found)


def cut_over(found: Raw) -> bool:
    return any(each["config"]["metadata"].get(MARK) == "safe_to_destroy" for each in found)


def old_cordoned(found: Raw) -> bool:
    return cut_over(found) and any(each["cordoned"] for each in found)


def old_stopping(found: Raw) -> bool:
    return cut_over(found) and any(each["state"] in {"stopping", "stopped"} for each in found)


MOMENTS = (half_made, made_green, cut_over, old_cordoned, old_stopping)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_bluegreen_that_is_killed_is_said_again_and_leaves_no_machine(
    fly: Stage, moment: Callable[[Raw], bool]
) -> None:
    name = f"killed-{moment.__name__.replace('_', '-')}"
    image = await asyncio.to_thread(fly.image, name)
    with fly.strategy("bluegreen"):
        async with people(fly):
            left = await killed(fly, image, moment)
            assert len(left) > 2
            status = (await asyncio.to_thread(fly.run, "status", "staging", "--json")).json()
            assert sum(each["left_over"] for each in status["machines"]) == len(left) - 2, status
            ended = await asyncio.to_thread(deploy, fly, image)
    await asyncio.to_thread(serves, fly, ended, name)
    assert any(each["step"]["step"] == "remove_machines" for each in ended.json()["steps"])


@pytest.mark.parametrize("moment", [made_green, cut_over])
async def test_a_flyctl_that_dies_during_bluegreen_is_taken_back(
    fly: Stage, moment: Callable[[Raw], bool]
) -> None:
    before = (await asyncio.to_thread(fly.machines))[0].release
    name = f"dies-{moment.__name__.replace('_', '-')}"
    words = await asyncio.to_thread(deploying, fly, await asyncio.to_thread(fly.image, name))
    with fly.strategy("bluegreen"):
        async with people(fly):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "myhealth_cli", *words),
                cwd=fly.checkout,
                env=fly.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            await until(fly, moment)
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            out, _ = await process.communicate()
    assert process.returncode == 1, out
    ended = Ended(0, out.decode(), "")
    assert ended.json()["recovered"], ended
    await asyncio.to_thread(serves, fly, ended, before)


async def test_a_rolling_deploy_that_is_killed_between_two_machines_converges(fly: Stage) -> None:
    image = await asyncio.to_thread(fly.image, "half")

    def half(found: Raw) -> bool:
        return len({each["image_ref"]["tag"] for each in found}) == 2

    async with people(fly):
        before = (await asyncio.to_thread(fly.machines))[0].release
        assert half(await killed(fly, image, half))
        back = ("rollback", "--environment", "staging", *await asyncio.to_thread(common, fly))
        ended = await asyncio.to_thread(again, fly, *back)
        await asyncio.to_thread(serves, fly, ended, before)
        assert half(await killed(fly, image, half))
        # Bluegreen by itself refuses machines that differ.
        with fly.strategy("bluegreen"):
            ended = await asyncio.to_thread(deploy, fly, image)
        await asyncio.to_thread(serves, fly, ended, "half")


async def test_the_lock_is_seen_from_elsewhere_during_bluegreen(fly: Stage) -> None:
    elsewhere = copy.copy(fly)
    elsewhere.checkout = fly.folder / "elsewhere"
    image = await asyncio.to_thread(fly.image, "locked")
    words = await asyncio.to_thread(deploying, fly, image)
    with fly.strategy("bluegreen"):
        shutil.copytree(fly.checkout, elsewhere.checkout, ignore=shutil.ignore_patterns(".local"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "myhealth_cli", *words),
            cwd=fly.checkout,
            env=fly.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        await until(fly, lambda found: any(LOCK in each["config"]["metadata"] for each in found))
        first = await asyncio.to_thread(raw, fly)
        noted = [each["id"] for each in first if LOCK in each["config"]["metadata"]]
        assert noted == [min(each["id"] for each in first)]
        for moment in (made_green, cut_over, old_cordoned):
            await until(fly, moment)
            refused = await asyncio.to_thread(elsewhere.run, *words)
            assert refused.code == 2, (moment, refused)
            assert "is deploying" in refused.err, (moment, refused)
        out, _ = await process.communicate()
    await asyncio.to_thread(serves, fly, Ended(process.returncode or 0, out.decode(), ""), "locked")


# Bluegreen stops the old machines ten seconds after nothing new has reached them.
@pytest.mark.parametrize(("strategy", "delay"), [("rolling", "100"), ("bluegreen", "900")])
async def test_turns_that_outlast_the_drain_go_on_elsewhere(fly: Stage, strategy: str, delay: str) -> None:
    """Answers take some seconds, the drain one: the other machine, or the green one, takes them over."""
    words = ("anthropic_emulator", "serve", "--port", "0", "--ttft-ms", "100", "--delta-delay-ms", delay)
    with (
        speaking(*words, log=fly.folder / "log") as model,
        fly.toml({'strategy = "rolling"': f'strategy = "{strategy}"', '"25"': '"1"'}),
    ):
        serve = f"env ANTHROPIC_BASE_URL={model['url']} {sys.executable} -m agent_backend serve"
        names = [f"lasting-{strategy}-{number}" for number in (1, 2, 3)]
        images = [await asyncio.to_thread(fly.program, name, serve) for name in names]
        await asyncio.to_thread(serves, fly, await asyncio.to_thread(deploy, fly, images[0]), names[0])
        async with people(fly) as crowd:
            for name, image in zip(names[1:], images[1:], strict=True):
                await asyncio.to_thread(serves, fly, await asyncio.to_thread(deploy, fly, image), name)
    there = await kept.turns(fly)
    moved = [turn for turn in crowd.turns if there[turn.id].owners > 1]
    print(f"{strategy}: {len(crowd.turns)} turns, {len(moved)} handed over")  # noqa: T201 - asked for
    assert moved


@pytest.mark.parametrize("strategy", ["rolling", "bluegreen"])
def test_promotion_rollback_and_status(fly: Stage, strategy: str) -> None:
    with fly.strategy(strategy):
        names = [f"{strategy}-{number}" for number in (1, 2)]
        promotion = ("promote", *common(fly, "production"), "--staging-url", fly.url(), "--no-smoke")
        for name in names:
            serves(fly, deploy(fly, fly.image(name)), name)
            serves(fly, fly.run(*promotion), name, "production")
        status = fly.run("status", "production", "--json").json()
        assert [each["release"] for each in status["machines"]] == [names[1]] * 2
        for each in status["machines"]:
            assert (each["is"], each["proven"], each["cordoned"], each["left_over"]) == (
                "awake",
                True,
                False,
                False,
            )
        assert [each["release"] for each in status["proven"]][:2] == names[::-1]
        serves(fly, fly.run("rollback", *common(fly, "production")), names[0], "production")
