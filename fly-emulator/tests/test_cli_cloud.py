"""`fly-emulator image` and `fly-emulator serve` as an operator has them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from typer.testing import CliRunner

from fly_emulator.cli import app
from fly_emulator.serve import flyctl_env

REFERENCE = "registry.fly.io/shop:v1"


def said(*words: str, code: int = 0) -> str:
    """Run a command in this process; return what it printed."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


def test_images_are_added_listed_and_removed(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    added = said("image", "add", REFERENCE, "--command", "sh -c 'sleep 9'", "--env", "A=1", *state)
    assert added.startswith(f"{REFERENCE}@sha256:")
    said("image", "add", "registry.fly.io/shop:v2", "--command", "true", "--pulls", REFERENCE, *state)
    listed = said("image", "list", *state)
    assert f"{added.strip()}  sh -c 'sleep 9'" in listed
    assert f"(pulls {REFERENCE})" in listed
    said("image", "remove", REFERENCE, *state)
    assert REFERENCE not in said("image", "list", *state).split("@")[0]


def test_wrong_images_are_told(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert "hint:" in said("image", "add", REFERENCE, "--command", "", *state, code=2)
    assert "none:1" in said(
        "image", "add", REFERENCE, "--command", "true", "--pulls", "none:1", *state, code=2
    )
    assert REFERENCE in said("image", "remove", REFERENCE, *state, code=2)
    (tmp_path / "state" / "images.json").write_text("{", encoding="utf-8")
    assert "damaged" in said("image", "list", *state, code=2)


def test_flyctl_is_pointed_at_loopback_and_at_nothing_else() -> None:
    env = flyctl_env("http://127.0.0.1:4280", "token")
    for name, value in env.items():
        if name.endswith(("_URL", "_PROXY")):
            assert "127.0.0.1:4280" in value, name
    assert env["FLY_API_TOKEN"] == "token"


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-m", "fly_emulator", "serve", "--port", "0", "--json", "--state", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            where = json.loads(process.stdout.readline())
            assert where["token"] == (state / "token").read_text(encoding="utf-8")
            assert (state / "token").stat().st_mode & 0o077 == 0
            bearer = {"Authorization": f"Bearer {where['token']}", "Content-Type": "application/json"}
            body = json.dumps({"name": "shop", "org_slug": "personal"}).encode()
            with urlopen(Request(f"{where['api']}/v1/apps", data=body, headers=bearer), timeout=20) as made:
                assert made.status == 201
            with urlopen(Request(f"{where['api']}/_emulator/apps", headers=bearer), timeout=20) as apps:
                assert json.loads(apps.read())["shop"].startswith("http://127.0.0.1:")
            control = f"{where['api']}/_emulator/apps/shop/status"
            with urlopen(Request(control, headers=bearer), timeout=20) as status:
                assert json.loads(status.read())["requests"] == 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "fly_emulator", "serve", "--port", port, "--state", str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert port in done.stderr
    assert "hint:" in done.stderr
