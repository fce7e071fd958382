"""What the person sees: steps as they end, on stderr; the outcome on stdout, as words or as JSON."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from myhealth_cli.deploy import plan
from myhealth_cli.deploy.environments import ENVIRONMENTS

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0, DEL, C1, and what turns the direction of writing."""

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        case plan.RemoveMachines():
            back = f"put {', '.join(step.serve)} back into service, then " if step.serve else ""
            return f"{back}remove what a deploy that died has left: machines {', '.join(step.ids)}"
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


def plain(text: str) -> str:
    """Return text of others (names, a server's answer) for one line of a terminal or of a CI's log.

    Without control characters: they could recolour or erase what stands there, or begin a line of their own,
    which GitHub would take for a command.
    """
    return _CONTROL.sub(" ", text)


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
    sys.stdout.write("".join(f"{plain(line)}\n" for line in lines))


def tell(words: str) -> None:
    """Say something that is neither progress nor the outcome."""
    sys.stderr.write(f"{words}\n")


def progress(step: Step, done: Done | None) -> None:
    """Tell of a step's beginning and end."""
    if done is None:
        line = f"{words(step)} ..."
    else:
        sign, rest = "failed" if done.error else "ok", done.error or done.detail
        line = f"{sign} ({done.seconds:.1f} s){': ' + rest if rest else ''}"
    # Whoever read along may be gone (`| head`, a lost terminal): that must not stop a deploy half way.
    with suppress(OSError):
        sys.stderr.write(f"   {plain(line)}\n")
        sys.stderr.flush()


def show_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Print how it went."""
    if as_json:
        show_json(outcome)
        return
    if outcome.ok:
        sys.stdout.write(f"{outcome.app}: done\n" + "".join(f"  {plain(note)}\n" for note in outcome.notes))
        return
    sys.stdout.write(f"{outcome.app}: failed: {plain(outcome.error)}\n")
    if outcome.recovered:
        sys.stdout.write(
            f"  what ran before serves again, proven, {outcome.seconds_to_safe:.1f} s after the failure\n"
        )
    sys.stdout.write(f"  now: {plain(outcome.left)}\n")
    sys.stdout.write("".join(f"  {plain(note)}\n" for note in outcome.notes))
    name = next((each.name for each in ENVIRONMENTS if each.app == outcome.app), "staging")
    sys.stdout.write(f"  why: `myhealth logs {name} --no-follow`\n")


def show_error(error: MyHealthError, *, changed: bool) -> None:
    """Print an error as JSON."""
    show_json({"ok": False, "changed": changed, "error": str(error), "hint": error.hint})


def show_json(document: Any) -> None:
    """Print one JSON document."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    # JSON lets DEL, C1 and the like stand in strings; a terminal obeys them.
    sys.stdout.write("".join(f"{_CONTROL.sub(_escaped, line)}\n" for line in text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def hand_on(outcome: Outcome, env: Mapping[str, str]) -> None:
    """Tell a workflow's later jobs which image was proven: `image` in the file GITHUB_OUTPUT names."""
    if (file := env.get("GITHUB_OUTPUT")) and outcome.image and plain(outcome.image) == outcome.image:
        with Path(file).open("a", encoding="utf-8") as output:
            output.write(f"image={outcome.image}\n")


def record(folder: Path, verb: str, outcome: Outcome) -> None:
    """Append what was done to a file for people; nothing reads it back."""
    folder.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(
        {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "verb": verb, "outcome": outcome}
    )
    with (folder / f"{outcome.app}.jsonl").open("ab") as file:
        file.write(line + b"\n")
