"""What a person sees first of a run of GitHub's: a few lines of Markdown where GITHUB_STEP_SUMMARY says.

What comes from outside (errors of flyctl, names of images) is indented, as code: nothing in it is Markdown.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy import plan
from myhealth_cli.deploy.report import words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from myhealth_cli.deploy.rollout import Done, Outcome
    from myhealth_cli.errors import MyHealthError

_LOOK: Final = (
    "**Somebody has to look now.** `myhealth status`, then docs/runbooks/incident.md; "
    "the workflow *rollback* goes back to what was proven."
)

_BEFORE: Final = (plan.CreateApp, plan.StageSecrets, plan.BuildImage)
"""A build that fails calls nobody out of bed."""


def of_outcome(verb: str, outcome: Outcome) -> str:
    """Say how a deploy, a promotion or a rollback went, and what runs now."""
    lines = [f"### {verb} of {outcome.app}: {'done' if outcome.ok else 'failed'}", ""]
    if outcome.ok:
        noted = [each.step for each in outcome.steps if isinstance(each.step, plan.NoteGood)]
        lines += _code(f"runs now: {noted[-1].image}") if noted else []
        lines += _code(*outcome.notes)
    else:
        lines += _code(outcome.error)
        if outcome.recovered:
            seconds = outcome.seconds_to_safe or 0.0
            lines += [f"What ran before serves again, proven, {seconds:.1f} s after the failure.", ""]
        elif _touched(outcome):
            lines += [_LOOK, ""]
        else:
            lines += ["What runs was not touched.", ""]
        lines += ["Now:", "", *_code(*outcome.left.split("; "), *outcome.notes)]
    lines += ["Steps:", ""]
    lines += _code(*(_step(each) for each in outcome.steps))
    return "\n".join([*lines, ""])


def _touched(outcome: Outcome) -> bool:
    """Say whether it went further than what comes before a deploy: what runs was changed, or looked at."""
    return any(not isinstance(each.step, _BEFORE) for each in outcome.steps)


def _step(done: Done) -> str:
    """Say in a line how a step went."""
    way = "way back: " if done.recovery else ""
    return f"{'failed' if done.error else 'ok'} ({done.seconds:.1f} s): {way}{words(done.step)}"


def of_error(error: MyHealthError, how: str, *, changed: bool) -> str:
    """Say what kept a verb from its work; `how` it ended, in a word."""
    said = _LOOK if changed else "Nothing was changed."
    return "\n".join([f"### myhealth: {how}", "", *_code(str(error), error.hint or ""), said, ""])


def write(text: str, env: Mapping[str, str] = os.environ) -> None:
    """Append it to the run's summary, if this is a run of GitHub's. A deploy does not fail for it."""
    if file := env.get("GITHUB_STEP_SUMMARY"):
        with suppress(OSError), Path(file).open("a", encoding="utf-8") as summary:
            summary.write(text + "\n")


def _code(*texts: str) -> list[str]:
    """Indent texts so that they are shown as they are; a blank line ends it."""
    lines = [f"    {' '.join(each.split())}" for each in texts if each.strip()]
    return [*lines, ""] if lines else []
