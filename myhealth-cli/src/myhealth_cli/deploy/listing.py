"""`myhealth environments` and `myhealth logs`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from select import select
from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy.environments import ENVIRONMENTS, deployed
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.flyctl import child_env
from myhealth_cli.deploy.ground import app_of, no_app, stand
from myhealth_cli.deploy.report import show_json, tell

if TYPE_CHECKING:
    from pathlib import Path

    from myhealth_cli.deploy.environments import Deployed
    from myhealth_cli.deploy.ground import Ground

_EMPTY_S: Final = 30.0
"""Longer than flyctl's own tries where Fly refuses: those end with an error."""


def run(*, as_json: bool) -> int:
    """Print the table of environments."""
    if as_json:
        show_json(ENVIRONMENTS)
        return 0
    lines: list[str] = []
    for each in ENVIRONMENTS:
        where = f", app {each.app} in {each.region}, {each.config}" if each.app else ", on your machine"
        lines.append(f"{each.name}: {each.url}{where}")
        lines += [
            f"  {secret.name} in {secret.place}{', optional' if secret.optional else ''}: {secret.why}"
            for secret in each.secrets
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def logs(name: str, *, follow: bool, machine: str | None, as_json: bool) -> int:
    """Hand the terminal to `flyctl logs`; Ctrl-C is how following ends. Raises NothingChangedError."""
    environment = deployed(name)
    ground = asyncio.run(_looked(environment, machine))
    words = [str(ground.fly.binary), "logs", "--app", environment.app]
    words += [] if machine is None else ["--machine", machine]
    words += ([] if follow else ["--no-tail"]) + (["--json"] if as_json else [])
    try:
        if not follow:
            return _kept(words, ground.root)
        ended = subprocess.run(words, check=False, cwd=ground.root, env=child_env())  # noqa: S603 - our own words
    except KeyboardInterrupt:
        return 0
    return 1 if ended.returncode else 0  # a signal is negative


def _kept(words: list[str], root: Path) -> int:
    """Show what the log has. Of one that has nothing flyctl asks for ever (its `logs/polling.go`)."""
    with subprocess.Popen(words, cwd=root, env=child_env(), stdout=subprocess.PIPE) as process:  # noqa: S603 - our own words
        assert process.stdout is not None
        if not select([process.stdout], [], [], _EMPTY_S)[0]:
            process.kill()
            tell(f"no line within {_EMPTY_S:g} s: the log is empty, or Fly does not answer")
            return 0
        try:
            for line in process.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except BaseException:
            process.kill()
            raise
    return 1 if process.returncode else 0


async def _looked(environment: Deployed, machine: str | None) -> Ground:
    """See that there is something to show: flyctl says nothing of a machine that is not there."""
    ground = await stand()
    app = await app_of(ground, environment)
    if not app.exists:
        raise no_app(environment)
    there = [each.id for each in app.machines]
    if machine is not None and machine not in there:
        raise NothingChangedError(
            f"{environment.app} has no machine {machine}", hint=f"those it has: {', '.join(there)}"
        )
    return ground
