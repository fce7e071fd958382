from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from myhealth_cli.deploy import checks, doctor
from myhealth_cli.deploy.environments import Deployed, deployed
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
        assert each["state"] == "ok" or each["detail"] or each["hint"], each
    words = myhealth("doctor", "--offline", folder=tmp_path, env=nothing())
    assert words.code == 1
    assert "Traceback" not in words.out + words.err
    assert re.search(r"^\d+ ok, \d+ failed, \d+ by hand, \d+ unknown$", words.out, re.MULTILINE)


def test_a_machine_without_a_login_says_because() -> None:
    ended = myhealth("doctor", "--offline", "--json", env=nothing())
    findings = {each["id"]: each for each in ended.json()["findings"]}
    assert findings["staging.toml"]["state"] == "ok"
    assert findings["done.staging"] == {
        "id": "done.staging",
        "section": doctor.DONE,
        "title": "Staging Environment deployed",
        "state": "unknown",
        "detail": "--offline",
        "hint": "",
    }


def test_the_epics_lists_are_all_there_in_its_words_and_order() -> None:
    epic = (ROOT / "docs" / "epic.md").read_text("utf-8")
    told = re.findall(r'^\| \[[ x]\] "(.+?)" \|', epic, re.MULTILINE)
    ours = {each.title: each.section for each in doctor.items() if each.section in doctor.EPIC}
    assert sorted(ours) == sorted(told)
    done = epic.index("## Definition of Done")
    customers = re.findall(r'^\| \[[ x]\] "(.+?)" \|', epic[done:], re.MULTILINE)
    assert [title for title, section in ours.items() if section == doctor.DONE] == customers


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
