from __future__ import annotations

import html
import json
import os
import re
import time
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from myhealth_cli.deploy import checks, doctor
from myhealth_cli.deploy import world as world_module
from myhealth_cli.deploy.environments import ENVIRONMENTS, Deployed, deployed
from myhealth_cli.deploy.findings import Found
from myhealth_cli.deploy.world import CannotSay, World

from .installed import ROOT, myhealth, nothing


def test_a_fresh_machine_gets_an_honest_list(tmp_path: Path) -> None:
    ended = myhealth("doctor", "--offline", "--json", folder=tmp_path, env=nothing())
    assert ended.code == 1
    assert ended.err == ""
    findings = {each["id"]: each for each in ended.json()["findings"]}
    assert findings["python"]["state"] == "ok"
    assert findings["git"]["state"] == "failed"
    assert findings["flyctl"]["state"] == "failed"
    assert findings["flyctl"]["hint"]
    assert findings["checkout"]["state"] == "failed"
    assert findings["done.ios"]["state"] == "by hand"
    assert findings["staging.toml"]["detail"] == "this is not a checkout of the repository"
    for each in findings.values():
        assert each["state"] in {"ok", "failed", "by hand", "unknown"}
        assert each["state"] == "ok" or each["hint"], each
    words = myhealth("doctor", "--offline", folder=tmp_path, env=nothing())
    assert words.code == 1
    assert "Traceback" not in words.out + words.err
    assert re.search(r"^\d+ ok, \d+ failed, \d+ by hand, \d+ unknown$", words.out, re.MULTILINE)


def test_a_machine_without_a_login_says_because() -> None:
    ended = myhealth("doctor", "--offline", "--json", env=nothing())
    findings = {each["id"]: each for each in ended.json()["findings"]}
    assert findings["staging.toml"]["state"] == "ok"
    assert findings["production.signed"]["state"] == "failed", "nobody has signed yet"
    assert findings["production.signed"]["detail"].endswith(" files are drafts")
    assert findings["done.staging"] == {
        "id": "done.staging",
        "section": doctor.DONE,
        "title": "Staging Environment deployed",
        "state": "unknown",
        "detail": "--offline",
        "hint": "leave it out",
    }


def test_the_epics_lists_are_all_there_in_its_words_and_order() -> None:
    epic = (ROOT / "docs" / "epic.md").read_text("utf-8")
    told = re.findall(r'^\| \[[ x]\] "(.+?)" \|', epic, re.MULTILINE)
    ours = {each.title: each.section for each in doctor.items() if each.section in doctor.EPIC}
    assert sorted(ours) == sorted(told)
    done = epic.index("## Definition of Done")
    customers = re.findall(r'^\| \[[ x]\] "(.+?)" \|', epic[done:], re.MULTILINE)
    assert [title for title, section in ours.items() if section == doctor.DONE] == customers


def test_the_picture_shows_todays_list() -> None:
    """`scripts/picture.py doctor` takes it again."""
    picture = (ROOT / "docs" / "images" / "doctor.svg").read_text("utf-8")
    seen = " ".join(html.unescape(re.sub(r"<[^>]*>", "", picture)).split())
    at = 0
    for each in doctor.items():
        at = seen.find(each.title[:40], at)
        assert at >= 0, f"{each.title} is not in the picture, or not in its place"


def test_no_secret_is_ever_shown() -> None:
    secret = "plain-word-that-must-not-show"
    ended = myhealth(
        "doctor",
        "--offline",
        env=nothing(
            DATABASE_URL=f"postgresql://user:{secret}@aws-0-us-east-1.pooler.supabase.com:6543/postgres",
            CANARY_PASSWORD=secret,
            FLY_API_TOKEN=secret,
            SUPABASE_PUBLISHABLE_KEY=secret,
        ),
    )
    assert secret not in ended.out + ended.err
    assert "port 6543 is the transaction pooler" in ended.out
    assert "us-east-1" in ended.out


@pytest.mark.parametrize(
    ("host", "state", "detail"),
    [
        ("aws-0-eu-central-1.pooler.supabase.com", "ok", "eu-central-1"),
        ("aws-1-eu-west-1.pooler.supabase.com", "failed", "eu-west-1"),
        ("db.abcdefghijklmnopqrst.supabase.co", "unknown", ""),
    ],
)
async def test_the_region_is_read_from_the_host(
    monkeypatch: pytest.MonkeyPatch, host: str, state: str, detail: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@{host}:5432/postgres")
    found = await checks.supabase_region(World(ROOT, offline=True))
    assert found.state == state
    assert detail in found.detail


async def test_the_database_is_reached_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestServer(web.Application()) as server:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://u:p@127.0.0.1:{server.port}/postgres")
        assert await checks.database(World(ROOT, offline=False)) == Found("ok", f"127.0.0.1:{server.port}")
    with pytest.raises(CannotSay, match="cannot be reached"):
        await checks.database(World(ROOT, offline=False))


async def test_a_deployed_server_is_asked() -> None:
    async def readyz(_request: web.Request) -> web.Response:
        return web.json_response({"detail": "database"}, status=503)

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"release": "r1", "environment": "production"})

    app = web.Application()
    app.add_routes([web.get("/readyz", readyz), web.get("/version", version)])
    async with TestServer(app) as server:
        place = Deployed(
            name="staging",
            url=f"http://127.0.0.1:{server.port}",
            app="a",
            config="agent-backend/fly.staging.toml",
            region="fra",
            secrets=(),
        )
        world = World(ROOT, offline=False)
        ready = await checks.ready(place, world)
        assert (ready.state, "503" in ready.detail) == ("failed", True)
        said = await checks.version(place, world)
        assert (said.state, said.detail) == ("failed", "it says it is production")
        with pytest.raises(CannotSay, match="no TLS connection"):
            await checks.tls(place, world)


async def test_a_file_that_is_not_strict_fails(tmp_path: Path) -> None:
    config = tmp_path / "agent-backend" / "fly.staging.toml"
    config.parent.mkdir()
    good = (ROOT / deployed("staging").config).read_text("utf-8")
    config.write_text(good.replace("min_machines_running", "min_machine_running"), "utf-8")
    found = await checks.toml_read(deployed("staging"), World(tmp_path, offline=True))
    assert found.state == "failed"
    assert "min_machine_running" in found.detail


def _tool(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, "utf-8")
    file.chmod(0o755)
    return file


async def test_a_flyctl_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYCTL", str(_tool(tmp_path, "flyctl", "no program")))
    looked = [each for each in doctor.items() if each.id in {"flyctl", "login", "staging.app"}]
    findings = await doctor.examine(World(ROOT, offline=False), looked)
    assert [each.state for each in findings] == ["unknown"] * 3
    assert all("does not start" in each.detail and each.hint for each in findings), findings
    refused = myhealth("status", "staging", folder=ROOT, env={**os.environ})
    assert (refused.code, len(refused.err.splitlines())) == (2, 2), refused


async def test_a_fly_that_does_not_answer_is_not_an_app_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '#!/bin/sh\n[ "$1" = auth ] && exit 0\necho "Error: no route to host" >&2\nexit 1\n'
    monkeypatch.setenv("FLYCTL", str(_tool(tmp_path, "flyctl", script)))
    looked = [each for each in doctor.items() if each.id == "staging.app"]
    (found,) = await doctor.examine(World(ROOT, offline=False), looked)
    assert (found.state, found.detail) == ("unknown", "no route to host")
    assert "network" in found.hint


async def test_it_waits_for_fly_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = '#!/bin/sh\n[ "$1" = auth ] && exit 0\nexec sleep 60\n'
    monkeypatch.setenv("FLYCTL", str(_tool(tmp_path, "flyctl", script)))
    monkeypatch.setattr(world_module, "LOOK_S", 0.5)
    looked = [
        each
        for each in doctor.items()
        if each.id in {"staging.app", "staging.running", "staging.toml.flyctl"}
    ]
    began = time.monotonic()
    findings = await doctor.examine(World(ROOT, offline=False), looked)
    assert time.monotonic() - began < 20
    assert [each.state for each in findings] == ["unknown"] * 3, findings
    assert all(each.hint for each in findings)


async def test_what_cannot_be_read_ends_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:word@a..b/postgres")
    looked = [each for each in doctor.items() if each.id in {"database", "done.monitoring"}]
    (tmp_path / "agent-backend").mkdir()
    findings = await doctor.examine(World(tmp_path, offline=False), looked)
    assert [each.state for each in findings] == ["unknown", "unknown"], findings
    assert all(each.hint and "word" not in each.detail for each in findings)


async def test_github_is_asked_for_each_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = json.dumps([{"name": name} for name in deployed_in_github("staging")])
    script = f"#!/bin/sh\ncase \"$*\" in *staging*) echo '{names}';; *) echo '[]';; esac\n"
    _tool(tmp_path, "gh", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await checks.github_secrets(World(ROOT, offline=False))
    assert found.state == "failed"
    assert found.detail.startswith("production lacks FLY_API_TOKEN, ")
    assert "staging" not in found.detail


def deployed_in_github(name: str) -> tuple[str, ...]:
    return next(each.in_place("GitHub secrets") for each in ENVIRONMENTS if each.name == name)
