"""docs/runbooks/first-deployment.md from its first command to its last, in one shell, on the local Fly.

Stood in for is what needs a laptop, a browser or a builder: brew, an editor, the login, the build, fly.dev.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from myhealth_cli.deploy.environments import deployed

from .stage import Stage, find, stage
from .test_runbooks import blocks

FLYCTL = find()
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
_CANARY = ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY", "CANARY_EMAIL", "CANARY_PASSWORD")
_STAND_INS = """\
set -eu
bash() { :; }
brew() { :; }
fly() { "$FLYCTL" auth whoami; }
nano() { for file in "$(dirname "$1")"/*.env; do cat "$PASTED/$(basename "$file")" > "$file"; done; }
url() { "$FLYCTL" status --app "$1" --json | sed -n 's/.*"AppURL": *"\\([^"]*\\)".*/\\1/p'; }
myhealth() {
  staging=myhealth-agents-staging production=myhealth-agents quick="--bake 0 --no-smoke --no-ha"
  case "$1" in
    doctor) ;;  # Asks public addresses, and test_doctor.py runs it.
    deploy) command myhealth "$@" --image "$IMAGE" --url "$(url $staging)" $quick;;
    promote) command myhealth "$@" --url "$(url $production)" --staging-url "$(url $staging)" $quick;;
    load) command myhealth load "$(url $staging)" --clients 2 --turns 4;;
    *) command myhealth "$@";;
  esac
}
"""


def _pasted(fly: Stage) -> Path:
    """Write down what a person pastes into the page's files."""
    folder = fly.folder / "pasted"
    folder.mkdir()
    lines = "".join(f"{name}='{fly.env[name]}'\n" for name in _CANARY)
    for name in ("staging", "production"):
        text = (fly.folder / f"{name}.env").read_text("utf-8")
        (folder / f"{name}.env").write_text(text, "utf-8")
        (folder / f"canary.{name}.env").write_text(lines, "utf-8")
    return folder


def test_the_page_word_by_word(tmp_path: Path) -> None:
    with stage(tmp_path, FLYCTL) as fly:
        activate = fly.checkout / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n', "utf-8")
        env = {key: value for key, value in fly.env.items() if key not in _CANARY}
        ended = subprocess.run(
            ["bash", "-c", _STAND_INS + "".join(blocks("first-deployment"))],
            cwd=fly.checkout,
            env={**env, "PASTED": str(_pasted(fly)), "IMAGE": fly.image("first")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        told = ended.stdout + ended.stderr
        assert ended.returncode == 0, told[-3000:]
        assert fly.release("staging") == fly.release("production") == "first"
        for secret in ("sk-acceptance", fly.env["CANARY_PASSWORD"], fly.fly_env["FLY_API_TOKEN"]):
            assert secret not in told
    kept = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "myhealth").iterdir()}
    assert kept == {"canary.staging.env": 0o600, "canary.production.env": 0o600}
    assert deployed("staging").url in "".join(blocks("first-deployment"))
