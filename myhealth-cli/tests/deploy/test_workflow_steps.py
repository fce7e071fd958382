"""The steps of deploy-agents.yml and rollback.yml, in order, with flyctl or its stand-in at the local Fly.

What a runner has and this has not is given: an image by its name instead of a build, and the local addresses.
Each job has its environment's FLY_API_TOKEN: deploy tokens, which see no other app.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .installed import ROOT, Ended
from .stage import Stage, find, stage

HERE = ("make ", "python3 scripts/base_digest.py")
"""Steps that need a whole clone or a registry: `make` runs this very test."""
RELEASE = {
    "scripts/bootstrap.py": f"""
from pathlib import Path
Path(".venv").symlink_to({str(Path(sys.executable).parent.parent)!r})
""",
    "acceptance/test_turns.py": "def test_turns(): pass",
}
"""What version_skew.py needs of a release: here it has this environment, and one test."""


def steps(workflow: str, job: str) -> list[str]:
    """Return the commands of a job that have to do with Fly, in order."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{workflow}.yml").read_text("utf-8"))
    commands = [step["run"] for step in loaded["jobs"][job]["steps"] if "run" in step]
    return [each for each in commands if not each.startswith(HERE)]


@pytest.fixture
def fly(tmp_path: Path) -> Generator[Stage]:
    with stage(tmp_path, find()) as made:
        for environment in ("staging", "production"):
            secrets = str(made.folder / f"{environment}.env")
            assert made.run("setup", environment, "--from", secrets, "--json").code == 0
        scripts = made.checkout / "scripts"
        scripts.mkdir()
        for name in ("staging_runs", "version_skew"):
            shutil.copy(ROOT / f"scripts/{name}.py", scripts)
        (made.checkout / "acceptance").mkdir()
        for name, text in RELEASE.items():
            (made.checkout / name).write_text(text, "utf-8")
        (made.checkout / "agent-backend/migrations").symlink_to(ROOT / "agent-backend/migrations")
        (made.checkout / ".gitignore").write_text(".local/\n", "utf-8")
        made.env["GITHUB_OUTPUT"] = str(tmp_path / "output")
        git(made, "init", "--quiet", "--initial-branch=main")
        yield made


def git(made: Stage, *words: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", *words]
    return subprocess.run(
        command, cwd=made.checkout, env=made.env, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(made: Stage, name: str) -> str:
    """Commit something; return what a deploy of it is called."""
    (made.checkout / "CHANGE").write_text(name, "utf-8")
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message", name)
    return git(made, "rev-parse", "--short=12", "HEAD")


def do(made: Stage, command: str, *more: str) -> Ended:
    """Run a step's command as a runner does, in the checkout; $IMAGE is the newest that was handed on."""
    if "$IMAGE" in command:
        handed_on = Path(made.env["GITHUB_OUTPUT"]).read_text("utf-8").splitlines()
        command = command.replace("$IMAGE", handed_on[-1].removeprefix("image="))
    match shlex.split(command):
        case [".venv/bin/myhealth", *words]:
            return made.run(*words, *more)
        case [".venv/bin/python", script, *words]:
            ended = subprocess.run(
                [sys.executable, script, *words],
                cwd=made.checkout,
                env=made.env,
                capture_output=True,
                text=True,
                check=False,
            )
            return Ended(ended.returncode, ended.stdout, ended.stderr)
        case _:
            pytest.fail(f"unknown: {command}")


def local(made: Stage, command: str, release: str) -> tuple[str, ...]:
    """Return what the local stage needs besides."""
    quick = ("--bake", "0", "--no-ha", "--no-smoke") if "rollback" not in command else ("--bake", "0")
    if " deploy " in command:
        return ("--image", made.image(release, RELEASE=release), "--release", release,
                "--url", made.url(), *quick)  # fmt: skip
    if " promote " in command:
        return ("--url", made.url("production"), "--staging-url", made.url(), *quick)
    if " rollback " in command:
        return ("--url", made.url(), *quick)
    return ()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_steps_take_a_commit_to_production_and_a_second_one_back(fly: Stage) -> None:
    staging, production = steps("deploy-agents", "staging"), steps("deploy-agents", "production")
    to_staging = token(fly, "staging")
    to_production = token(fly, "production", "staging")
    assert [shlex.split(each)[:2] for each in (*staging, *production)] == [
        [".venv/bin/myhealth", "deploy"],
        [".venv/bin/python", "scripts/staging_runs.py"],
        [".venv/bin/python", "scripts/version_skew.py"],
        [".venv/bin/myhealth", "promote"],
    ]
    first = commit(fly, "first")
    succeed(to_staging, staging[0], first)
    runs, skew, promote = production
    succeed(to_production, runs, first)
    assert "production runs nothing yet" in succeed(to_production, skew, first).out
    succeed(to_production, promote, first)
    assert fly.release("production") == fly.release() == first
    output = Path(fly.env["GITHUB_OUTPUT"])
    built = output.read_text("utf-8")
    assert "@sha256:" in built
    second = commit(fly, "second")
    succeed(to_staging, staging[0], second)
    # Before that one may follow: what production runs passes its tests on the schema.
    assert f"skew: {first} on " in succeed(to_production, skew, second).out
    # Somebody says yes to the first commit only now, when staging runs the second.
    git(fly, "checkout", "--quiet", first)
    late = do(to_production, runs)
    assert late.code == 1
    assert f"staging runs {second}, not {first}" in late.out
    # Nor does it get further where somebody with staging's token has given the second one the first's name.
    output.write_text(built.splitlines()[0] + "\n", "utf-8")
    other = do(to_production, promote, *local(to_production, promote, first))
    assert other.code == 2, other
    assert f"runs {fly.machines()[0].image_ref.exact}" in other.err
    [back] = steps("rollback", "rollback")
    succeed(
        to_staging, back.removesuffix(' -- ${NUMBER:+"$NUMBER"}').replace('"$ENVIRONMENT"', "staging"), ""
    )
    assert fly.release("production") == fly.release() == first


def token(made: Stage, *environments: str) -> Stage:
    """Return the stage as a job sees it that has these environments' deploy tokens."""
    return made.without("FLY_API_TOKEN", FLY_API_TOKEN=made.deploy_token(*environments))


def succeed(made: Stage, command: str, release: str) -> Ended:
    ended = do(made, command, *local(made, command, release))
    assert ended.code == 0, (command, ended.out, ended.err)
    return ended
