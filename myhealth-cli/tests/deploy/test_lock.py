from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from myhealth_cli.deploy import lock, plan, removal, status
from myhealth_cli.deploy import machines_api as machines_api_module
from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.deploy.machines_api import MachinesApi
from myhealth_cli.deploy.probe import Patiences
from myhealth_cli.deploy.rollout import Rollout

from .apps import STAGING, image
from .scripted import Scripted
from .test_rollout import answering

A = image("a")


@asynccontextmanager
async def machines_api(
    folder: Path, *, behind_s: float = 0, notes: list[str] | None = None
) -> AsyncGenerator[str]:
    """Serve the Machines API of the scripted flyctl's machine; `behind_s`: how far its clock is behind."""

    async def lease(_request: web.Request) -> web.Response:
        expires = int(time.time() - behind_s + 15)
        return web.json_response({"data": {"nonce": "n", "expires_at": expires}}, status=201)

    async def metadata(request: web.Request) -> web.Response:
        key = request.match_info["key"]
        [machine] = json.loads((folder / "machines").read_text("utf-8"))
        kept: dict[str, Any] = machine["config"].setdefault("metadata", {})
        if request.method == "POST":
            kept[key] = (await request.json())["value"]
            if notes is not None:
                notes.append(kept[key])
        else:
            kept.pop(key, None)
        (folder / "machines").write_text(json.dumps([machine]), "utf-8")
        return web.Response(status=204)

    async def ok(_request: web.Request) -> web.Response:
        return web.json_response({}, headers={"Date": formatdate(time.time() - behind_s, usegmt=True)})

    site = web.Application()
    one = "/v1/apps/{app}/machines/m1"
    site.router.add_post(f"{one}/lease", lease)
    site.router.add_delete(f"{one}/lease", ok)
    site.router.add_get(f"{one}/metadata", ok)
    site.router.add_route("*", one + "/metadata/{key}", metadata)
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def until(note: str) -> float:
    return float(note.partition(" ")[2])


async def test_a_lock_outlasts_the_step_it_guards(tmp_path: Path) -> None:
    """A build may take half an hour: longer than a lock that was taken once."""
    scripted, notes = Scripted(tmp_path, A), list[str]()
    async with (
        machines_api(tmp_path, notes=notes) as url,
        MachinesApi(scripted.fly, url) as api,
        lock.app_lock(api, scripted.fly, STAGING.app, "us") as held,
    ):
        rollout = Rollout(scripted.fly, folder=tmp_path, api=api, lock=held)
        build = plan.BuildImage(STAGING.app, STAGING.config, "label")
        steps = (build, plan.DeployImage(STAGING.app, STAGING.config, A))
        assert (await rollout.run(plan.Plan(app=STAGING.app, steps=steps))).ok
    assert [round(until(note) - time.time(), -2) for note in notes] == [1200, 2100, 1200]
    [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))
    assert machine["config"]["metadata"] == {}, "and is given back"


async def test_a_lock_outlasts_slow_drains_and_a_patient_probe(tmp_path: Path) -> None:
    scripted, notes = Scripted(tmp_path, A), list[str]()
    async with (
        machines_api(tmp_path, notes=notes) as url,
        MachinesApi(scripted.fly, url) as api,
        lock.app_lock(api, scripted.fly, STAGING.app, "us") as held,
    ):
        rollout = Rollout(scripted.fly, folder=tmp_path, api=api, lock=held, patiences=Patiences(ready_s=600))
        ids = tuple(f"x{number}" for number in range(10))
        removed, woken = plan.RemoveMachines(STAGING.app, ids), plan.WakeMachines(STAGING.app)
        assert (await rollout.run(plan.Plan(app=STAGING.app, steps=(removed, woken)))).ok
    taken, while_removing, while_probing = (until(note) - time.time() for note in notes)
    assert round(taken, -2) == 1200
    assert while_removing > 10 * removal.REMOVE_S
    assert while_probing > 2 * 600


async def test_a_first_deploy_is_noted_as_soon_as_there_is_a_machine(tmp_path: Path) -> None:
    scripted, notes = Scripted(tmp_path, A), list[str]()
    there = (tmp_path / "machines").read_text("utf-8")
    (tmp_path / "machines").write_text("[]", "utf-8")
    async with (
        machines_api(tmp_path, notes=notes) as url,
        MachinesApi(scripted.fly, url) as api,
        lock.app_lock(api, scripted.fly, STAGING.app, "us") as held,
    ):
        await held.renew(0)
        assert notes == []
        (tmp_path / "machines").write_text(there, "utf-8")
        await held.renew(0)
        with pytest.raises(NothingChangedError, match="us is deploying"):
            async with lock.app_lock(api, scripted.fly, STAGING.app, "them"):
                pass


@pytest.mark.parametrize("behind_s", [3600, -3600])
async def test_a_first_deploys_lock_ends_by_flys_clock_too(behind_s: float, tmp_path: Path) -> None:
    scripted, notes = Scripted(tmp_path, A), list[str]()
    there = (tmp_path / "machines").read_text("utf-8")
    (tmp_path / "machines").write_text("[]", "utf-8")
    async with (
        machines_api(tmp_path, behind_s=behind_s, notes=notes) as url,
        MachinesApi(scripted.fly, url) as api,
        lock.app_lock(api, scripted.fly, STAGING.app, "us") as held,
    ):
        (tmp_path / "machines").write_text(there, "utf-8")
        await held.renew(0)
        [note] = notes
        assert round(until(note) - (time.time() - behind_s), -2) == lock.LOCK_S


@pytest.mark.parametrize("behind_s", [3600, -3600])
async def test_a_lock_ends_by_flys_clock_and_not_by_ours(behind_s: float, tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, A)
    [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))

    def noted(seconds: float) -> None:
        note = f"them {time.time() - behind_s + seconds:.0f}"
        machine["config"]["metadata"] = {lock.LOCK: note}
        (tmp_path / "machines").write_text(json.dumps([machine]), "utf-8")

    async with machines_api(tmp_path, behind_s=behind_s) as url, MachinesApi(scripted.fly, url) as api:
        noted(600)
        with pytest.raises(NothingChangedError, match="them is deploying") as refused:
            async with lock.app_lock(api, scripted.fly, STAGING.app, "us"):
                pass
        assert abs(int(refused.value.hint.split()[-2]) - 600) <= 3
        noted(-600)
        async with lock.app_lock(api, scripted.fly, STAGING.app, "us"):
            pass


@pytest.mark.parametrize("behind_s", [3600, -3600])
async def test_who_deploys_is_told_by_flys_clock(
    behind_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted = Scripted(tmp_path, A)
    [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYCTL", str(scripted.fly.binary))
    async with machines_api(tmp_path, behind_s=behind_s) as url:
        monkeypatch.setenv("FLY_FLAPS_BASE_URL", url)
        for seconds, there in ((600, True), (-600, False)):
            machine["config"]["metadata"] = {lock.LOCK: f"them {time.time() - behind_s + seconds:.0f}"}
            (tmp_path / "machines").write_text(json.dumps([machine]), "utf-8")
            assert await asyncio.to_thread(status.run, "staging", as_json=False) == 0
            assert ("them is deploying" in capsys.readouterr().out) is there


async def test_who_has_the_note_and_the_lease_is_told_at_once(tmp_path: Path) -> None:
    """The flyctl of a deploy holds the lease of each machine it replaces."""
    scripted = Scripted(tmp_path, A)
    [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))
    machine["config"]["metadata"] = {lock.LOCK: f"them {time.time() + 600:.0f}"}
    (tmp_path / "machines").write_text(json.dumps([machine]), "utf-8")
    began = time.monotonic()
    async with answering(b"{}", 409) as url, MachinesApi(scripted.fly, url) as api:
        with pytest.raises(NothingChangedError, match="them is deploying"):
            async with lock.app_lock(api, scripted.fly, STAGING.app, "us"):
                pass
    assert time.monotonic() - began < 10, "and does not wait for the lease"


async def test_a_note_that_cannot_be_taken_back_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bluegreen both generations carry it; the first machine's host is gone."""
    monkeypatch.setattr(machines_api_module, "_SET_PAUSE_S", 0.0)
    scripted, there = Scripted(tmp_path, A), tmp_path / "machines"
    [first] = json.loads(there.read_text("utf-8"))
    taken_back: list[str] = []

    async def metadata(request: web.Request) -> web.Response:
        if request.match_info["machine"] == "m1":
            return web.Response(status=503)
        taken_back.append(request.match_info["machine"])
        return web.Response(status=204)

    site = web.Application()
    site.router.add_delete("/v1/apps/{app}/machines/{machine}/metadata/{key}", metadata)
    async with TestServer(site) as server, MachinesApi(scripted.fly, str(server.make_url("/"))) as api:
        there.write_text("[]", "utf-8")
        async with lock.app_lock(api, scripted.fly, STAGING.app, "us"):
            first["config"]["metadata"] = {lock.LOCK: f"us {time.time() + 600:.0f}"}
            there.write_text(json.dumps([first, {**first, "id": "m2"}]), "utf-8")
    assert taken_back == ["m2"]


async def test_who_cannot_take_the_lock_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LEASE_WAIT_S", 0.0)
    fly = Scripted(tmp_path, A).fly
    for status_, error in ((409, NothingChangedError), (503, FlyctlError)):
        async with answering(b"{}", status_) as url, MachinesApi(fly, url) as api:
            with pytest.raises(error, match=f"the Machines API answers {status_} to lease"):
                async with lock.app_lock(api, fly, STAGING.app, "us"):
                    pass


async def test_who_has_lost_the_lock_leaves_the_app_alone(tmp_path: Path) -> None:
    """A laptop that slept through its lock wakes up in the middle of somebody else's deploy."""
    scripted, notes = Scripted(tmp_path, A), list[str]()
    async with (
        machines_api(tmp_path, notes=notes) as url,
        MachinesApi(scripted.fly, url) as api,
        lock.app_lock(api, scripted.fly, STAGING.app, "us") as held,
    ):
        [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))
        machine["config"]["metadata"] = {lock.LOCK: f"them {time.time() + 600:.0f}"}
        (tmp_path / "machines").write_text(json.dumps([machine]), "utf-8")
        rollout = Rollout(scripted.fly, folder=tmp_path, api=api, lock=held)
        for step in (plan.DeployImage(STAGING.app, STAGING.config, A), plan.NoteGood(STAGING.app, A)):
            wanted = plan.Plan(app=STAGING.app, steps=(step,), recovery=(step,))
            outcome = await rollout.run(wanted)
            assert not outcome.ok
            assert outcome.error == f"them is deploying {STAGING.app} now: our lock had expired"
    assert scripted.heard("deploy") == []
    assert len(notes) == 1, "only our own lock, at the beginning"
    [machine] = json.loads((tmp_path / "machines").read_text("utf-8"))
    assert machine["config"]["metadata"][lock.LOCK].startswith("them "), "theirs is not given back by us"


async def test_what_was_deployed_by_hand_after_the_gates_is_not_noted_as_proven(tmp_path: Path) -> None:
    scripted, notes = Scripted(tmp_path, image("b")), list[str]()
    async with machines_api(tmp_path, notes=notes) as url, MachinesApi(scripted.fly, url) as api:
        rollout = Rollout(scripted.fly, folder=tmp_path, api=api)
        steps = (plan.NoteGood(STAGING.app, A),)
        assert "now, not" in (await rollout.run(plan.Plan(app=STAGING.app, steps=steps))).error
        steps = (plan.NoteGood(STAGING.app, image("b")),)
        outcome = await rollout.run(plan.Plan(app=STAGING.app, steps=steps))
        assert outcome.image == image("b").ref, outcome
    assert len(notes) == 1
