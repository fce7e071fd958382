from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from myhealth_cli.deploy import plan, report
from myhealth_cli.deploy.rollout import Done, Outcome

FOUL = "\x1b]0;mine\x07\x1b[2K\r\n::add-mask::x\x9b31m\u202eok"


def test_names_of_others_give_a_terminal_and_a_runner_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    step = plan.AskCanary("https://example.test")
    report.progress(step, Done(step=step, seconds=1, error=FOUL))
    report.show_outcome(Outcome(app="app", ok=False, changed=True, error=FOUL, left=FOUL), as_json=False)
    report.show_plan(plan.Plan(app="app", steps=(step,), notes=(FOUL,)), as_json=False)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert all(each == "\n" or each.isprintable() for each in text), ascii(text)
    assert not any(line.startswith("::") for line in text.splitlines())


def test_json_is_plain_to_a_terminal_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    report.show_json({"left": FOUL, "lines": ["a", "b"]})
    text = capsys.readouterr().out
    assert all(each == "\n" or each.isprintable() for each in text), ascii(text)
    assert json.loads(text) == {"left": FOUL, "lines": ["a", "b"]}


def test_whoever_read_along_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        report.progress(plan.WakeMachines("app"), None)
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            gone.write("still gone\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), here)


def test_only_a_proven_image_is_handed_on_and_only_one_line_of_it(tmp_path: Path) -> None:
    file = tmp_path / "output"
    env = {"GITHUB_OUTPUT": str(file)}
    for image in ("", "name:tag@sha256:00\nother=value"):
        report.hand_on(Outcome(app="app", ok=True, changed=True, image=image), env)
    assert not file.exists()
    report.hand_on(Outcome(app="app", ok=True, changed=True, image="name:tag@sha256:00"), {})
    report.hand_on(Outcome(app="app", ok=True, changed=True, image="name:tag@sha256:00"), env)
    assert file.read_text("utf-8") == "image=name:tag@sha256:00\n"
