"""What the person sees: steps as they end, on stderr; the outcome on stdout, as words or as JSON."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from myhealth_cli.deploy import plan

if TYPE_CHECKING:
    from pathlib import Path

    from myhealth_cli.deploy.plan import Plan, Step
    from myhealth_cli.deploy.rollout import Done, Outcome
    from myhealth_cli.errors import MyHealthError


def words(step: Step) -> str:  # noqa: C901, PLR0911 - one for each kind of step
    """Say what a step does."""
    match step:
        case plan.CreateApp():
            return f"create the app {step.app}"
        case plan.StageSecrets():
            return f"set secrets, for the next deploy: {', '.join(step.names)}"
        case plan.BuildImage():
            return f"build the image once, as {step.label}"
        case plan.DeployImage():
            migrate = ", after the release command" if step.migrate else ", without the release command"
            return f"deploy {step.image} to {step.app}{migrate}"
        case plan.WakeMachines():
            return "wake every machine"
        case plan.CompareImages():
            return "compare the images of all machines"
        case plan.ProbeMachines():
            return f"probe /readyz and /version of each machine at {step.url}"
        case plan.AskCanary():
            return "ask a question as the canary user"
        case plan.Bake():
            return f"watch for {step.seconds:g} s, then ask again"
        case plan.NoteGood():
            return f"note {step.image} as proven"


def show_plan(wanted: Plan, *, as_json: bool) -> None:
    """Print a plan (`--dry-run`)."""
    if as_json:
        show_json(wanted)
        return
    lines = [f"Plan for {wanted.app}; nothing is done:"]
    lines += [f"  {number}. {words(step)}" for number, step in enumerate(wanted.steps, 1)]
    if wanted.recovery:
        lines += ["If a step fails:", *(f"  - {words(step)}" for step in wanted.recovery)]
    lines += [f"Note: {note}" for note in wanted.notes]
    sys.stdout.write("\n".join(lines) + "\n")


def progress(step: Step, done: Done | None) -> None:
    """Tell of a step's beginning and end."""
    if done is None:
        sys.stderr.write(f"   {words(step)} ...\n")
        return
    sign = "failed" if done.error else "ok"
    rest = done.error or done.detail
    sys.stderr.write(f"   {sign} ({done.seconds:.1f} s){': ' + rest if rest else ''}\n")


def show_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Print how it went."""
    if as_json:
        show_json(outcome)
        return
    if outcome.ok:
        sys.stdout.write(f"{outcome.app}: done\n" + "".join(f"  {note}\n" for note in outcome.notes))
        return
    sys.stdout.write(f"{outcome.app}: failed: {outcome.error}\n")
    if outcome.recovered:
        sys.stdout.write(
            f"  what ran before serves again, proven, {outcome.seconds_to_safe:.1f} s after the failure\n"
        )
    sys.stdout.write(f"  now: {outcome.left}\n")


def show_error(error: MyHealthError, *, changed: bool) -> None:
    """Print an error as JSON."""
    show_json({"ok": False, "changed": changed, "error": str(error), "hint": error.hint})


def show_json(document: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def record(folder: Path, verb: str, outcome: Outcome) -> None:
    """Append what was done to a file for people; nothing reads it back."""
    folder.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(
        {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "verb": verb, "outcome": outcome}
    )
    with (folder / f"{outcome.app}.jsonl").open("ab") as file:
        file.write(line + b"\n")
