"""The way back while Fly fails: looks that are lost, machines that cannot be removed."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from myhealth_cli.deploy import flyctl, looks, plan, removal, state
from myhealth_cli.deploy import rollout as rollout_module
from myhealth_cli.deploy.errors import GateError
from myhealth_cli.deploy.machines_api import MachinesApi
from myhealth_cli.deploy.probe import Patiences
from myhealth_cli.deploy.rollout import Outcome, Rollout
from myhealth_cli.deploy.state import Image

from .apps import STAGING, image
from .scripted import program
from .test_rollout import answering

A, B = image("a"), image("b")
APP = STAGING.app
TAG = "fly_bluegreen_deployment_tag"

_PROGRAM = """#!{python}
import json, pathlib, sys
folder, words = pathlib.Path({folder!r}), sys.argv[1:]
world = json.loads((folder / "world").read_text())
call, machines = words[:2], world["machines"]
world["heard"].append(words)
failed = ""
if call == ["auth", "token"]:
    print("fo1_token")
elif call == ["machine", "list"]:
    world["looks"] += 1
    if world["away"] and world["looks"] % world["away"]:
        failed = "the Machines API answers 502"
    else:
        print(json.dumps(machines))
elif words[0] == "machine":
    name = next(each for each in words[2:] if each[0] == "m")
    if words[1] in world["stuck"].get(name, ()):
        failed = "host unreachable"
    elif words[1] == "destroy":
        world["machines"] = [each for each in machines if each["id"] != name]
    elif words[1] in ("cordon", "uncordon"):
        for each in machines:
            if each["id"] == name:
                each["cordoned"] = words[1] == "cordon"
elif words[0] == "deploy":
    ref = words[words.index("--image") + 1]
    env = dict(words[i + 1].split("=", 1) for i, each in enumerate(words) if each == "--env")
    left = [words[i + 1] for i, each in enumerate(words) if each == "--exclude-machines"]
    for each in machines:
        if each["id"] not in left:
            each["image_ref"]["digest"] = ref.partition("@")[2]
            each["config"]["env"] = env
(folder / "world").write_text(json.dumps(world))
if failed:
    sys.exit("Error: " + failed)
"""


def machine(name: str, runs: Image, tag: str = "", *, cordoned: bool = False) -> dict[str, Any]:
    base, _, digest = runs.ref.partition("@")
    registry, _, repository = base.removesuffix(":tag").partition("/")
    return {
        "id": name,
        "state": "started",
        "cordoned": cordoned,
        "config": {"env": {"RELEASE": runs.release}, "metadata": {TAG: tag} if tag else {}},
        "image_ref": {"registry": registry, "repository": repository, "tag": "tag", "digest": digest},
    }


class World:
    """An app as a scripted flyctl has it. `away`: only each so-manieth look is answered."""

    def __init__(
        self, folder: Path, *machines: dict[str, Any], away: int = 0, **stuck: tuple[str, ...]
    ) -> None:
        self._file, self.folder = folder / "world", folder
        world = {"machines": machines, "away": away, "looks": 0, "stuck": stuck, "heard": []}
        self._file.write_text(json.dumps(world), "utf-8")
        self.fly = flyctl.Flyctl(
            program(folder, _PROGRAM.format(python=sys.executable, folder=str(folder))), folder
        )

    @property
    def now(self) -> dict[str, Any]:
        return json.loads(self._file.read_text("utf-8"))

    def heard(self, *begin: str) -> list[list[str]]:
        """Return the calls that begin with these words, in order."""
        return [words for words in self.now["heard"] if words[: len(begin)] == list(begin)]

    @asynccontextmanager
    async def serving(self, release: str) -> AsyncGenerator[tuple[str, Rollout]]:
        """Serve a release at every machine; yield where, and a rollout."""
        body = json.dumps({"release": release}).encode()
        async with answering(body) as url, MachinesApi(self.fly, url) as api:
            yield url, Rollout(self.fly, folder=self.folder, api=api, patiences=Patiences(ready_s=1))


def deploying(url: str) -> plan.Plan:
    """Plan to deploy B; nobody can ask it (there is no user): back to A."""
    return plan.Plan(
        app=APP,
        steps=(plan.DeployImage(APP, STAGING.config, B), plan.AskCanary(url)),
        recovery=(
            plan.DeployImage(APP, STAGING.config, A, migrate=False, smoke=False, rolling=True),
            plan.WakeMachines(APP),
            plan.CompareImages(APP, A),
            plan.ProbeMachines(url, APP, A.release),
        ),
    )


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(removal, "_PAUSE_S", 0.0)
    monkeypatch.setattr(removal, "_TRIES", 3)
    monkeypatch.setattr(removal, "_FORCED", 1)
    monkeypatch.setattr(rollout_module, "_SEEN_S", 0.0)


async def test_looks_that_are_lost_do_not_end_the_way_back(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A), away=2)
    async with world.serving(A.release) as (url, rollout):
        outcome = await rollout.run(deploying(url))
    assert outcome.recovered, outcome
    assert [words[words.index("--image") + 1] for words in world.heard("deploy")] == [B.ref, A.ref]
    assert not outcome.left.startswith("unknown")


async def test_a_fly_that_stays_away_ends_it_within_a_bound(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A), away=1000)
    async with world.serving(A.release) as (url, rollout):
        outcome = await rollout.run(plan.Plan(app=APP, steps=(plan.ProbeMachines(url, APP, None),)))
    assert "502" in outcome.error
    assert len(world.heard("machine", "list")) == 8, "four for the gate, four for what is left"


async def test_a_rollback_leaves_on_its_machines_what_it_fled_from(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", B))
    step = plan.DeployImage(APP, STAGING.config, A, migrate=False, smoke=False, fled=B.ref)
    async with world.serving(A.release) as (_, rollout):
        assert (await rollout.run(plan.Plan(app=APP, steps=(step,)))).ok
    [words] = world.heard("deploy")
    assert f"{state.FLED}={B.ref}" in words
    [seen] = await state.machines(world.fly, APP)
    assert (seen.release, seen.fled) == (A.release, B.ref)


def left_over(outcome: Outcome, *names: str) -> None:
    """See that they are named, with why and what to do."""
    assert (outcome.ok, outcome.left_over) == (False, names)
    for name in names:
        assert f"machine {name} cannot be removed: host unreachable" in outcome.error
        assert any(f"fly machine destroy --force {name} --app {APP}" in each for each in outcome.notes)


async def test_what_cannot_be_removed_is_left_out_of_the_way_back_and_named(tmp_path: Path) -> None:
    """A bluegreen's flyctl has died: A serves, and B's machine is on a host that is gone."""
    gone = machine("m2", B, "1800000000", cordoned=True)
    world = World(tmp_path, machine("m1", A), gone, m2=("cordon", "stop", "destroy"))
    async with world.serving(A.release) as (url, rollout):
        outcome = await rollout.run(deploying(url))
    assert outcome.recovered, outcome
    left_over(outcome, "m2")
    # The gates looked at the others; and the deploy of A, which found B there, left that one out.
    back = world.heard("deploy")[-1]
    assert back[back.index("--exclude-machines") + 1] == "m2"
    assert back[back.index("--strategy") + 1] == "rolling"
    assert "machine m2" in outcome.left


async def test_a_rollback_goes_on_too_and_its_exit_code_says_what_is_left(tmp_path: Path) -> None:
    gone = machine("m2", B, "1800000000", cordoned=True)
    world = World(tmp_path, machine("m1", A), gone, m2=("cordon", "stop", "destroy"))
    async with world.serving(A.release) as (url, rollout):
        steps = (plan.RemoveMachines(APP, ("m2",), must=False), *deploying(url).recovery)
        outcome = await rollout.run(plan.Plan(app=APP, steps=steps))
    left_over(outcome, "m2")
    assert not any(each.error for each in outcome.steps), outcome
    assert not outcome.recovered


async def test_a_deploy_does_not_begin_beside_what_cannot_be_removed(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A), machine("m2", B), m2=("destroy",))
    async with world.serving(A.release) as (url, rollout):
        steps = (plan.RemoveMachines(APP, ("m2",)), *deploying(url).steps)
        outcome = await rollout.run(plan.Plan(app=APP, steps=steps, recovery=deploying(url).recovery))
    left_over(outcome, "m2")
    assert world.heard("deploy") == []


async def test_a_machine_that_nobody_can_drain_is_destroyed(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A), machine("m2", B), m2=("cordon", "stop"))
    async with world.serving(A.release) as (_, rollout):
        outcome = await rollout.run(plan.Plan(app=APP, steps=(plan.RemoveMachines(APP, ("m2",)),)))
    assert outcome.ok, outcome
    assert [each["id"] for each in world.now["machines"]] == ["m1"]


async def test_what_stays_takes_requests_before_the_others_go(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A, cordoned=True), machine("m2", B))
    step = plan.RemoveMachines(APP, ("m2",), serve=("m1",))
    async with world.serving(A.release) as (_, rollout):
        assert (await rollout.run(plan.Plan(app=APP, steps=(step,)))).ok
    verbs = [(words[1], name) for words in world.heard("machine") if (name := words[-3]) in ("m1", "m2")]
    assert verbs[0] == ("uncordon", "m1")
    assert verbs[-1] == ("destroy", "m2")


async def test_what_serves_stays_where_the_others_cannot_be_put_back(tmp_path: Path) -> None:
    world = World(tmp_path, machine("m1", A, cordoned=True), machine("m2", B), m1=("uncordon",))
    step = plan.RemoveMachines(APP, ("m2",), serve=("m1",), must=False)
    async with world.serving(A.release) as (_, rollout):
        outcome = await rollout.run(plan.Plan(app=APP, steps=(step,)))
    assert not outcome.ok
    assert "m1 cannot be put back into service" in outcome.error
    assert world.heard("machine", "destroy") == []
    # It is the proven one: nobody is told to destroy it.
    (note,) = outcome.notes
    assert note.startswith(f"machine m1 takes no requests: `fly machine uncordon m1 --app {APP}`")


async def test_who_cannot_be_put_back_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "REMOVE_S", 0.3)
    hangs = flyctl.Flyctl(program(tmp_path, "#!/bin/sh\nexec sleep 60\n"), tmp_path)
    for step in (removal.serve, removal.remove):
        with pytest.raises(GateError, match="it took too long"):
            await step(hangs, APP, "m1")
