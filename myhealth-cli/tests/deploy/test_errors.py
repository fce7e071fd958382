from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from myhealth_cli.deploy import cli, listing, load, probe
from myhealth_cli.deploy.errors import GateError, NothingChangedError
from myhealth_cli.deploy.lock import file_lock
from myhealth_cli.tokens import tokens_for

from .installed import Ended, myhealth, nothing
from .scripted import program


def refused(ended: Ended, *says: str) -> None:
    """See that it changed nothing, in two lines: what is wrong and what to do."""
    assert ended.code == 2, ended
    lines = ended.err.rstrip("\n").split("\n")
    assert len(lines) == 2, ended.err
    assert lines[0].startswith("myhealth: ")
    assert lines[1].startswith("  ")
    for each in says:
        assert each in ended.err


def test_outside_a_checkout(tmp_path: Path) -> None:
    refused(myhealth("deploy", "staging", folder=tmp_path, env=nothing()), "not a checkout", "cd to where")


@pytest.mark.parametrize(
    "words", [("deploy", "staging"), ("promote",), ("rollback",), ("status", "staging"), ("setup", "staging")]
)
def test_without_flyctl(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    refused(myhealth(*words, folder=tmp_path, env=nothing()), "flyctl is not installed", "brew install")


def test_a_flyctl_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    ended = myhealth("status", "staging", folder=tmp_path, env=nothing(FLYCTL="/nonexistent/flyctl"))
    refused(ended, "FLYCTL names /nonexistent/flyctl")


def test_a_wrong_environment() -> None:
    refused(myhealth("status", "prod", env=nothing()), "'prod'", "staging or production")
    refused(myhealth("deploy", "production", env=nothing()), "myhealth promote")


def test_errors_as_json() -> None:
    ended = myhealth("deploy", "production", "--json", env=nothing())
    assert ended.code == 2
    assert ended.json() == {
        "ok": False,
        "changed": False,
        "error": "production gets what staging has proven, never a build of its own",
        "hint": "myhealth promote",
    }


def test_an_interrupt_is_a_document_too_and_ends_flyctl(tmp_path: Path) -> None:
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    hangs = program(tmp_path, f"#!/bin/sh\necho $$ >{tmp_path}/pid\nkill -INT $PPID\nexec sleep 60\n")
    env = nothing(FLYCTL=str(hangs), PATH="/usr/bin:/bin")
    ended = myhealth("deploy", "staging", "--json", folder=tmp_path, env=env)
    assert ended.code == 1
    assert ended.json() == {
        "ok": False,
        "changed": True,
        "error": "interrupted",
        "hint": "say the same again: it goes on from what is there",
    }
    assert not (Path("/proc") / (tmp_path / "pid").read_text("utf-8").strip()).exists()


def test_a_verb_that_only_reads_has_changed_nothing_when_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    hangs = program(tmp_path, "#!/bin/sh\nkill -INT $PPID\nexec sleep 60\n")
    env = nothing(FLYCTL=str(hangs), PATH="/usr/bin:/bin", GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    for words in (("logs", "staging"), ("deploy", "staging", "--dry-run")):
        ended = myhealth(*words, "--json", folder=tmp_path, env=env)
        assert ended.code == 1
        found = ended.json()
        assert (found["changed"], found["error"], found["hint"]) == (False, "interrupted", "say it again")
    said = (tmp_path / "summary").read_text("utf-8")
    assert said.startswith("### myhealth: interrupted\n")
    assert "Nothing was changed." in said


def test_what_nobody_thought_of_is_in_the_summary_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        raise ZeroDivisionError

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    for reads, says in ((False, "**Somebody has to look now.**"), (True, "Nothing was changed.")):
        with pytest.raises(ZeroDivisionError):
            cli.leave(broken, json=True, reads=reads)
        assert f'"changed": {str(not reads).lower()}' in capsys.readouterr().out
        said = (tmp_path / "summary").read_text("utf-8").rpartition("### ")[2]
        assert said.startswith("myhealth: broken\n\n    ZeroDivisionError")
        assert says in said


def test_a_log_that_is_empty_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent-backend").mkdir()
    (tmp_path / "agent-backend" / "fly.toml").touch()
    text = """#!/bin/sh
[ "$1" = auth ] && echo token
[ "$1" = logs ] || exit 0
[ -e full ] && echo line && exit
[ -e away ] && exit 1
exec sleep 60
"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYCTL", str(program(tmp_path, text)))
    monkeypatch.setattr(listing, "_EMPTY_S", 0.5)

    def shown() -> int:
        return listing.logs("staging", follow=False, machine=None, as_json=False)

    assert shown() == 0
    assert "the log is empty, or Fly does not answer" in capfd.readouterr().err
    (tmp_path / "full").touch()
    assert (shown(), capfd.readouterr().out) == (0, "line\n")
    (tmp_path / "full").rename(tmp_path / "away")
    assert shown() == 1


def test_one_at_a_time_on_a_host(tmp_path: Path) -> None:
    refusal = pytest.raises(NothingChangedError, match="is deploying app")
    with file_lock(tmp_path, "app"), file_lock(tmp_path, "other"), refusal, file_lock(tmp_path, "app"):
        pass
    # What flyctl starts and leaves running (its agent) has the lock's file, too.
    with file_lock(tmp_path, "app") as held:
        agent = subprocess.Popen(["sleep", "60"], pass_fds=(held,))
    try:
        with file_lock(tmp_path, "app"):
            pass
    finally:
        agent.kill()
        agent.wait()
    (tmp_path / "file").touch()
    with pytest.raises(NothingChangedError, match="cannot be written"), file_lock(tmp_path / "file", "app"):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://myhealth-agents.fly.dev", "this is production"),
        ("https://MyHealth-Agents.fly.dev./", "this is production"),
        ("https://coach.example.com", "none of our addresses"),
        ("https://192.0.2.7", "none of our addresses"),
    ],
)
def test_a_load_on_production_or_on_somebody_else_is_asked_for_twice(address: str, says: str) -> None:
    bounds = load.Bounds(clients=1, turns=1, seconds=1)
    with pytest.raises(NothingChangedError, match=says) as refused:
        load.run(address, bounds, token="token", yes=False, as_json=False)
    assert "--yes" in refused.value.hint


def test_no_token_and_no_password_crosses_a_network_in_plain_text() -> None:
    variables = dict.fromkeys(probe.CANARY, "x")
    with pytest.raises(NothingChangedError, match=r"SUPABASE_URL http://auth\.example\.com is not https"):
        probe.canary({**variables, "SUPABASE_URL": "http://auth.example.com"})
    bounds = load.Bounds(clients=1, turns=1, seconds=1)
    with pytest.raises(NothingChangedError, match="is not https"):
        load.run("http://myhealth-agents-staging.fly.dev", bounds, token="t", yes=True, as_json=False)
    refused(
        myhealth("rollback", "--url", "http://myhealth-agents.fly.dev", env=nothing()), "--url", "https://"
    )


def test_a_load_on_nothing(tmp_path: Path) -> None:
    env = nothing(MYHEALTH_TOKEN="token")
    ended = myhealth("load", "http://127.0.0.1:1", "--ready", "0.1", folder=tmp_path, env=env)
    refused(ended, "/readyz")


@pytest.mark.parametrize(
    "url", ["foo", "ftp://x", "http://", "http://h:0", "https://h/v1/agents", "https://u:p@h", "http://[x"]
)
def test_a_load_on_what_is_no_address(url: str) -> None:
    with pytest.raises(NothingChangedError, match="no server's address"):
        load.run(url, load.Bounds(clients=1, turns=1, seconds=1), token="t", yes=True, as_json=False)


class _Elsewhere:
    """A user of another project: signed in, and known to nobody here."""

    async def token(self, *, renew: bool = False) -> str:
        return f"a token, {renew}"


async def test_a_load_that_nobody_lets_in() -> None:
    async def refuse(request: web.Request) -> web.Response:
        if request.path == "/readyz":
            return web.json_response({"status": "ready"})
        if request.path == "/version":
            return web.json_response({"release": "r", "environment": "staging", "machine": "m"})
        return web.json_response({"detail": "The token is not valid."}, status=401)

    server = web.Application()
    server.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(server) as there:
        url = f"http://127.0.0.1:{there.port}"
        bounds, tokens = load.Bounds(clients=1, turns=1, seconds=1), tokens_for(url, "t", "u")
        with pytest.raises(NothingChangedError) as refused:
            await load.measure(url, bounds, tokens)
        async with probe.Probe(url) as asks:
            with pytest.raises(GateError, match="are SUPABASE_URL and CANARY"):
                await asks.ask(_Elsewhere())
    assert "--token" in refused.value.hint
