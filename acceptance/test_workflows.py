"""The workflows: what they may, and that each command in them exists.

Their steps are run in order in myhealth-cli/tests/deploy/test_workflow_steps.py.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
NAMES = ("ci", "deploy-agents", "rollback")
SCRIPTS = ROOT / "scripts"
PROMOTE = '.venv/bin/myhealth promote --image "$IMAGE" --json'
VERBS = {"deploy", "promote", "rollback", "status", "doctor", "setup"}

Json = dict[str, Any]


@cache
def workflow(name: str) -> Json:
    """Return a workflow; YAML 1.1 reads the key `on` as true."""
    loaded: Json = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    loaded["on"] = loaded.pop(True)  # type: ignore[call-overload]
    return loaded


def jobs(name: str) -> dict[str, Json]:
    return workflow(name)["jobs"]


def runs(name: str) -> list[tuple[str, str]]:
    """Return (job, command) of each `run:` in order; jobs as they need one another."""
    return [(job, step["run"]) for job, each in jobs(name).items() for step in each["steps"] if "run" in step]


def script(name: str) -> ModuleType:
    """Import a script by its file."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what they may --------------------------------------------------------------------------------------


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_may_read_the_code_and_no_more(name: str) -> None:
    assert workflow(name)["permissions"] == {}
    assert "pull_request_target" not in workflow(name)["on"]
    for job in jobs(name).values():
        assert job["permissions"] == {"contents": "read"}
        assert job["timeout-minutes"] <= 45
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "values reach a shell as variables only"
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_every_action_is_pinned_to_one_commit_and_says_its_version() -> None:
    pins: dict[str, set[str]] = {}
    for name in NAMES:
        for line in (FOLDER / f"{name}.yml").read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                found = re.search(r"uses: (\S+)@([0-9a-f]{40}) # v?\d+(\.\d+)+$", line)
                assert found, line
                pins.setdefault(found[1], set()).add(found[2])
    assert {action: len(commits) for action, commits in pins.items()} == dict.fromkeys(
        ("actions/checkout", "actions/setup-python", "superfly/flyctl-actions/setup-flyctl"), 1
    )


def test_secrets_are_given_to_single_steps_of_jobs_with_an_environment() -> None:
    for name in NAMES:
        text = (FOLDER / f"{name}.yml").read_text(encoding="utf-8")
        given = 0
        for job in jobs(name).values():
            assert "secrets." not in str(job.get("env")) + str(workflow(name).get("env"))
            for step in job["steps"]:
                used = re.findall(r"secrets\.(\w+)", str(step))
                assert not used or "environment" in job
                given += len(used)
        assert given == text.count("secrets."), "and nowhere else"


def test_nothing_that_changes_an_app_is_cut_off_or_runs_beside_another() -> None:
    deploy, back = jobs("deploy-agents"), jobs("rollback")["rollback"]
    groups = {job: deploy[job]["concurrency"]["group"] for job in ("staging", "production")}
    assert groups == {"staging": "fly-myhealth-agents-staging", "production": "fly-myhealth-agents"}
    for job in (*deploy.values(), back):
        assert job["concurrency"]["cancel-in-progress"] is False
    for group in groups.values():
        assert f"'{group}'" in back["concurrency"]["group"]


# --- what they do ---------------------------------------------------------------------------------------


def test_a_deploy_is_tested_built_once_and_goes_through_staging() -> None:
    on = workflow("deploy-agents")["on"]
    assert on["push"]["branches"] == ["main"]
    assert set(on["push"]["paths"]) == {
        *("agent-backend/**", "uv.lock", ".dockerignore"),
        ".github/workflows/deploy-agents.yml",
    }
    all_jobs = jobs("deploy-agents")
    assert list(all_jobs) == ["test", "staging", "production"]
    assert all_jobs["staging"]["needs"] == "test"
    assert all_jobs["production"]["needs"] == "staging"
    assert {all_jobs[job]["environment"]["name"] for job in ("staging", "production")} == {
        "staging",
        "production",
    }
    changing = [command for _, command in runs("deploy-agents") if "/myhealth " in command]
    assert changing == [".venv/bin/myhealth deploy staging --json", PROMOTE]


def test_production_gets_the_digest_that_this_run_has_built() -> None:
    """Staging's token can write on staging's machines what they are; it cannot write the outputs of a run."""
    staging, production = jobs("deploy-agents")["staging"], jobs("deploy-agents")["production"]
    [deploy] = [step for step in staging["steps"] if "myhealth deploy" in step.get("run", "")]
    assert staging["outputs"] == {"image": f"${{{{ steps.{deploy['id']}.outputs.image }}}}"}
    [promote] = [step for step in production["steps"] if step.get("run") == PROMOTE]
    assert promote["env"]["IMAGE"] == "${{ needs.staging.outputs.image }}"


def test_what_is_typed_into_the_form_of_a_rollback_is_no_option() -> None:
    [command] = [command for _, command in runs("rollback") if "/myhealth " in command]
    script = command.replace(".venv/bin/myhealth", "printf '%s\\n'")
    env = {"PATH": "/usr/bin:/bin", "ENVIRONMENT": "production"}

    def words(number: str) -> list[str]:
        done = subprocess.run(
            ["sh", "-c", script], env={**env, "NUMBER": number}, capture_output=True, check=True
        )
        return done.stdout.decode().splitlines()

    assert words("")[-1] == "--"
    assert words("7")[-2:] == ["--", "7"]
    assert words("--dry-run")[-2:] == ["--", "--dry-run"]


def test_production_is_tried_on_the_new_schema_before_it_gets_the_release() -> None:
    commands = [command for job, command in runs("deploy-agents") if job == "production"]
    skew = ".venv/bin/python scripts/version_skew.py --running production"
    assert commands.index(skew) < commands.index(PROMOTE)
    checkout = jobs("deploy-agents")["production"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0, "the running release is another commit"


def test_the_apps_are_those_of_the_files_of_fly() -> None:
    for job, file in (("staging", "fly.staging.toml"), ("production", "fly.toml")):
        found = re.search(r'^app = "(.*?)"', (ROOT / "agent-backend" / file).read_text(), re.MULTILINE)
        assert found is not None
        each = jobs("deploy-agents")[job]
        assert each["concurrency"]["group"] == f"fly-{found[1]}"
        assert each["environment"]["url"] == f"https://{found[1]}.fly.dev/version"


def _exists(command: str) -> None:
    """Fail if a command of a `run:` is not one that this repository, or a runner of GitHub's, has."""
    words = shlex.split(command)
    match words:
        case ["make", target]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
        case ["python3" | ".venv/bin/python", file, *_]:
            assert (ROOT / file).is_file()
        case ["docker", "build", "--file", file, *_]:
            assert (ROOT / file).is_file()
        case ["docker", "run", "--rm", "agent-backend:ci", "agent-backend", "--help"]:
            pass
        case [".venv/bin/myhealth", verb, *rest]:
            _verb_exists(verb, [word for word in rest if word.startswith("--")])
        case _:
            pytest.fail(f"unknown: {command}")


@cache
def _help(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "myhealth"), *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _verb_exists(verb: str, options: list[str]) -> None:
    assert verb in VERBS
    shown = _help(verb)
    assert shown.returncode == 0, shown.stderr
    for option in options:
        assert option in shown.stdout, f"`myhealth {verb}` has no {option}"


COMMANDS = sorted({command for name in NAMES for _, command in runs(name)})


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_exists(command: str) -> None:
    _exists(command)


def test_an_unknown_command_and_a_missing_script_are_found() -> None:
    for command in ("make nothing", "python3 scripts/nothing.py", "curl example"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            _exists(command)


@pytest.mark.parametrize("number", ["--help", "--dry-run", "-1", "7; false", " ", "last"])
def test_a_number_that_is_none_rolls_nothing_back(number: str) -> None:
    [(_, command)] = [each for each in runs("rollback") if "/myhealth " in each[1]]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ended = subprocess.run(
        ["bash", "-e", "-c", command.replace(".venv/bin/", "")],
        env={"PATH": path, "NUMBER": number, "ENVIRONMENT": "staging"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended
    assert "Invalid value" in ended.stderr


# --- the scripts ----------------------------------------------------------------------------------------

TAG = "python:3.11.14-slim-bookworm"
ONE, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a docker before the real one that answers `buildx imagetools inspect` with a line, or fails."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def answer(line: str) -> None:
        program = tmp_path / "docker"
        program.write_text(
            f'#!/bin/sh\n[ "$1 $2 $3 $4" = "buildx imagetools inspect {TAG}" ] && echo "{line}"\n'
        )
        program.chmod(0o755)

    return answer


def test_the_bases_digest_is_written_once_and_held(
    docker: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_digest, file = script("base_digest"), tmp_path / "base-image.digest"
    monkeypatch.setattr(base_digest, "FILE", file)
    assert base_digest.base((ROOT / "agent-backend/Dockerfile").read_text()) == TAG
    docker(ONE)
    assert base_digest.main(["--check"]) == 0
    assert not file.exists(), "a check writes nothing"
    assert base_digest.main([]) == 0
    assert file.read_text() == f"{TAG} {ONE}\n"
    assert base_digest.main([]) == 0
    docker(OTHER)
    assert base_digest.main(["--check"]) == base_digest.main([]) == 1
    assert file.read_text() == f"{TAG} {ONE}\n"
    assert base_digest.main(["--update"]) == 0
    assert file.read_text() == f"{TAG} {OTHER}\n"
    docker("no digest")
    assert base_digest.main([]) == base_digest.main(["--check"]) == 2
    (tmp_path / "docker").unlink()
    if not shutil.which("docker"):
        assert base_digest.main([]) == 2
    assert base_digest.main(["--chek"]) == 2


def test_a_release_that_is_no_commit_is_not_taken_for_a_passed_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skew = script("version_skew")
    assert skew.main(["0123abcdef01"]) == 2
    assert "release 0123abcdef01 is no commit of this clone" in capsys.readouterr().err
    monkeypatch.setenv("FLY_API_TOKEN", "made up")
    assert "FLY_API_TOKEN" not in skew.environment(), "old code gets no secret"


def test_only_the_approved_commit_is_promoted() -> None:
    others = script("staging_runs").others
    commit = "0123abcdef01" + "0" * 28

    def status(*releases: str) -> Json:
        return {"machines": [{"release": each} for each in releases]}

    assert others(status("0123abcdef01", "0123abcdef01"), commit) is None
    assert others(status("0123abcdef01", "fedcba987654"), commit) == "0123abcdef01, fedcba987654"
    assert others(status(), commit) == "nothing"
    assert others(status(""), commit) is not None
