from __future__ import annotations

from pathlib import Path

from inline_snapshot import snapshot

from myhealth_cli.deploy import plan, summary
from myhealth_cli.deploy.rollout import Done, Outcome
from myhealth_cli.deploy.state import Image

from .installed import myhealth, nothing

APP = "shop"
OLD, NEW = Image("registry/a:old@sha256:1", "old"), Image("registry/a:new@sha256:2", "new")


def step(what: plan.Step, error: str = "", *, recovery: bool = False) -> Done:
    return Done(step=what, seconds=1.2, error=error, recovery=recovery)


def deployed(image: Image) -> plan.DeployImage:
    return plan.DeployImage(APP, "agent-backend/fly.toml", image)


def test_what_is_said_of_a_promotion_that_went_well() -> None:
    outcome = Outcome(
        app=APP, ok=True, changed=True, steps=(step(deployed(NEW)), step(plan.NoteGood(APP, NEW)))
    )
    assert summary.of_outcome("promote", outcome) == snapshot("""\
### promote of shop: done

    runs now: registry/a:new@sha256:2 (release new)

Steps:

    ok (1.2 s): deploy registry/a:new@sha256:2 (release new) to shop, after the release command
    ok (1.2 s): note registry/a:new@sha256:2 (release new) as proven

""")


def test_what_is_said_of_one_that_went_back() -> None:
    outcome = Outcome(
        app=APP,
        ok=False,
        changed=True,
        recovered=True,
        steps=(
            step(deployed(NEW)),
            step(plan.WakeMachines(APP), "it crashed"),
            step(deployed(OLD), recovery=True),
        ),
        error="machine 1 crashed:\n# not a heading <b>",
        seconds_to_safe=12.34,
        left="machine 1 started, a:old, release old; machine 2 stopped, a:old, release old",
    )
    assert summary.of_outcome("promote", outcome) == snapshot("""\
### promote of shop: failed

    machine 1 crashed: # not a heading <b>

What ran before serves again, proven, 12.3 s after the failure.

Now:

    machine 1 started, a:old, release old
    machine 2 stopped, a:old, release old

Steps:

    ok (1.2 s): deploy registry/a:new@sha256:2 (release new) to shop, after the release command
    failed (1.2 s): wake every machine
    ok (1.2 s): way back: deploy registry/a:old@sha256:1 (release old) to shop, after the release command

""")


def test_a_way_back_that_failed_calls_for_somebody() -> None:
    def said(*steps: Done, changed: bool) -> str:
        outcome = Outcome(
            app=APP, ok=False, changed=changed, steps=steps, error="x; and going back failed: y", left="none"
        )
        return summary.of_outcome("deploy", outcome)

    broken = said(step(deployed(NEW)), step(plan.WakeMachines(APP), "it crashed"), changed=True)
    assert "**Somebody has to look now.**" in broken
    assert "    none\n" in broken
    assert "**Somebody" in said(step(plan.WakeMachines(APP), "it crashed"), changed=False), (
        "proven, and broken"
    )
    built = said(step(plan.BuildImage(APP, "agent-backend/fly.toml", "new"), "no builder"), changed=True)
    assert "Somebody" not in built
    assert "What runs was not touched." in built


def test_a_refusal_is_in_the_summary_of_the_run_and_only_there_is_one_written(tmp_path: Path) -> None:
    file = tmp_path / "summary"
    file.write_text("before\n", "utf-8")
    ended = myhealth("deploy", "production", env=nothing(GITHUB_STEP_SUMMARY=str(file)))
    assert ended.code == 2
    said = file.read_text("utf-8")
    assert said.startswith("before\n### myhealth: refused\n\n    production gets what staging has proven")
    assert "Nothing was changed." in said
    away = nothing(GITHUB_STEP_SUMMARY=str(tmp_path / "none" / "summary"))
    assert myhealth("deploy", "production", env=away).code == 2
