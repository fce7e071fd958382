from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from myhealth_cli.deploy import flyctl, looks, plan, probe
from myhealth_cli.deploy import rollout as rollout_module
from myhealth_cli.deploy.errors import FlyctlError
from myhealth_cli.deploy.machines_api import MachinesApi
from myhealth_cli.deploy.probe import Patiences
from myhealth_cli.deploy.rollout import Rollout
from myhealth_cli.tokens import TokenError

from .apps import STAGING, app, image, machine
from .scripted import Scripted, program

A, B = image("a"), image("b")


@asynccontextmanager
async def answering(body: bytes, status: int = 200) -> AsyncGenerator[str]:
    """Serve one answer to everything."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, status=status, content_type="application/json")

    site = web.Application()
    site.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "PAUSES_S", (0.0, 0.0, 0.0))


async def test_a_release_that_breaks_the_tool_itself_is_taken_back(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, B)
    # It is ready, and what it says of itself is nested so deep that our reader gives up in its own way.
    async with answering(b'{"a":' * 100_000) as url, MachinesApi(scripted.fly, url) as api:
        wanted = plan.deploy(STAGING, app(machine(1, A, good=(A,))), B, build=None, bake=0, url=url)
        rollout = Rollout(scripted.fly, folder=tmp_path, api=api, patiences=Patiences(ready_s=10))
        outcome = await rollout.run(wanted)
    assert not outcome.ok
    assert "RecursionError" in outcome.error
    deployed = [words[words.index("--image") + 1] for words in scripted.heard("deploy")]
    assert deployed == [B.ref, A.ref]


async def test_secrets_that_flyctl_quotes_are_not_told(tmp_path: Path) -> None:
    text = '#!/bin/sh\necho "Error: $(cat) is invalid" >&2\nexit 1\n'
    rollout = Rollout(
        flyctl.Flyctl(program(tmp_path, text), tmp_path), folder=tmp_path, secrets={"DATABASE_URL": "hunter2"}
    )
    steps = (plan.StageSecrets(STAGING.app, ("DATABASE_URL",)),)
    outcome = await rollout.run(plan.Plan(app=STAGING.app, steps=steps))
    assert "is invalid" in outcome.error
    assert "hunter2" not in str(outcome)


async def test_a_flyctl_that_does_not_listen_is_killed_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flyctl, "_END_S", 0.2)
    deaf = f'trap "" TERM\nsleep 60 & echo $! >{tmp_path}/child\necho $$ >{tmp_path}/own\nwait\n'
    with pytest.raises(FlyctlError, match="did not end within"):
        await flyctl.Flyctl(program(tmp_path, "#!/bin/sh\n" + deaf), tmp_path).run("deploy", seconds=1)
    for name in ("own", "child"):
        process = Path("/proc") / (tmp_path / name).read_text("utf-8").strip() / "stat"
        assert not process.exists() or ") Z " in process.read_text("utf-8"), name


async def test_a_flyctl_that_was_killed_is_said_to_be(tmp_path: Path) -> None:
    """And not what it told of its progress."""
    killed = flyctl.Flyctl(program(tmp_path, "#!/bin/sh\necho '==> Building' >&2\nkill -9 $$\n"), tmp_path)
    with pytest.raises(FlyctlError, match=r"^flyctl deploy was killed \(signal 9\)$"):
        await killed.run("deploy")
    text = "#!/bin/sh\nfor i in $(seq 200); do echo progress; done >&2\necho 'the end' >&2\nexit 1\n"
    with pytest.raises(FlyctlError, match=r"the end$"):
        await flyctl.Flyctl(program(tmp_path, text), tmp_path).run("deploy")


async def test_an_answer_that_is_none_of_the_machines_api_is_an_error_of_fly(tmp_path: Path) -> None:
    fly = Scripted(tmp_path, A).fly
    for body in (b"<html>log in to this network</html>", b"[]", b'{"data": null}', b'{"data": {"nonce": 1}}'):
        async with answering(body) as url, MachinesApi(fly, url) as api:
            with pytest.raises(FlyctlError):
                await api.lease("app", "m1")


async def test_a_note_is_said_again_when_the_answer_was_lost(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=204 if len(asked) == 3 else 503)

    site = web.Application()
    site.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with MachinesApi(
            Scripted(tmp_path, A).fly, f"http://127.0.0.1:{runner.addresses[0][1]}"
        ) as api:
            await api.set_metadata("app", "m1", "myhealth_good", "[]")
    finally:
        await runner.cleanup()
    assert len(asked) == 3


async def test_a_build_is_told_its_base_by_digest(tmp_path: Path) -> None:
    scripted, backend = Scripted(tmp_path, A), tmp_path / "agent-backend"
    backend.mkdir()
    (backend / "Dockerfile").write_text("ARG PYTHON=python:3.11\nFROM ${PYTHON}\n", "utf-8")
    steps = (plan.BuildImage(STAGING.app, STAGING.config, "label"),)

    async def build() -> str:
        rollout = Rollout(scripted.fly, folder=tmp_path)
        return (await rollout.run(plan.Plan(app=STAGING.app, steps=steps))).error

    assert not await build()
    (backend / "base-image.digest").write_text("python:3.11 sha256:00\n", "utf-8")
    assert not await build()
    (backend / "base-image.digest").write_text("python:3.10 sha256:00\n", "utf-8")
    assert "not the Dockerfile's base" in await build()
    without, pinned = scripted.heard("deploy")
    assert "--build-arg" not in without
    assert pinned[pinned.index("--build-arg") + 1] == "PYTHON=python:3.11@sha256:00"


async def test_a_machine_that_a_request_has_woken_meanwhile_is_awake(tmp_path: Path) -> None:
    """It slept when we looked, and refuses our start because it runs; Fly is away for a moment besides."""
    listed = '[{"id": "m1", "state": "%s"}]'
    text = f"""#!/bin/sh
cd {tmp_path}
echo x >>calls
[ "$2" = start ] && {{ echo "Error: it is started" >&2; exit 1; }}
case "$(wc -l <calls)" in
    1) echo '{listed % "stopped"}' ;;
    3) echo "Error: try again" >&2; exit 1 ;;
    *) echo '{listed % "started"}' ;;
esac
"""
    rollout = Rollout(flyctl.Flyctl(program(tmp_path, text), tmp_path), folder=tmp_path)
    outcome = await rollout.run(plan.Plan(app="app", steps=(plan.WakeMachines("app"),)))
    assert outcome.ok, outcome
    assert (tmp_path / "calls").read_text("utf-8").count("x") == 4


async def test_a_machine_that_is_gone_is_removed_whatever_flyctl_says(tmp_path: Path) -> None:
    text = f"""#!/bin/sh
cd {tmp_path}
[ "$2" = list ] && echo "[]" && exit 0
echo "$2" >>calls
[ "$2" != destroy ] || {{ echo "Error: the answer was lost" >&2; exit 1; }}
"""
    rollout = Rollout(flyctl.Flyctl(program(tmp_path, text), tmp_path), folder=tmp_path)
    outcome = await rollout.run(plan.Plan(app="app", steps=(plan.RemoveMachines("app", ("m1",)),)))
    assert outcome.ok, outcome
    assert (tmp_path / "calls").read_text("utf-8").split() == ["cordon", "stop", "destroy"]


async def test_an_issuer_that_answers_something_else_is_said() -> None:
    async with answering(b"<html>log in to this network</html>") as url:
        user = probe.canary({**dict.fromkeys(probe.CANARY, "x"), "SUPABASE_URL": url})
        with pytest.raises(TokenError, match="something else than a session"):
            await user.token()


async def test_the_way_back_waits_for_the_leases_of_a_flyctl_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_module, "_HELD_PAUSE_S", 0.01)
    text = f"""#!/bin/sh
[ "$1" = machine ] && echo "[]" && exit 0
echo x >>{tmp_path}/calls
[ "$(wc -l <{tmp_path}/calls)" -ge 3 ] && exit 0
echo "Error: failed to update machine m1: lease currently held by somebody" >&2
exit 1
"""
    signed_in = tmp_path / "signed-in"
    signed_in.mkdir()
    async with MachinesApi(Scripted(signed_in, A).fly) as api:
        rollout = Rollout(flyctl.Flyctl(program(tmp_path, text), tmp_path), folder=tmp_path, api=api)
        wanted = plan.Plan(app="app", steps=(plan.DeployImage("app", STAGING.config, A),))
        assert (await rollout.run(wanted)).ok
