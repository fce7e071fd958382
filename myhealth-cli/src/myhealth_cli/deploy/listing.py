"""`myhealth environments` and `myhealth logs`."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from myhealth_cli.deploy.environments import ENVIRONMENTS, deployed
from myhealth_cli.deploy.flyctl import child_env
from myhealth_cli.deploy.ground import Ground, app_of, no_app, stand
from myhealth_cli.deploy.report import show_json


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


def logs(name: str, *, follow: bool, as_json: bool) -> int:
    """Hand the terminal to `flyctl logs`. Raises NothingChangedError."""
    environment = deployed(name)

    async def go() -> Ground:
        ground = await stand()
        if not (await app_of(ground, environment)).exists:
            raise no_app(environment)
        return ground

    ground = asyncio.run(go())
    words = [str(ground.fly.binary), "logs", "--app", environment.app]
    words += ([] if follow else ["--no-tail"]) + (["--json"] if as_json else [])
    ended = subprocess.run(words, check=False, cwd=ground.root, env=child_env())  # noqa: S603 - our own words
    return 1 if ended.returncode else 0  # a signal is negative
