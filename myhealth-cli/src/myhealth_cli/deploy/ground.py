"""What every verb stands on: the checkout, flyctl, a login. What is missing is said first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.deploy import flyctl, state
from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.deploy.flyctl import Flyctl
from myhealth_cli.deploy.machines_api import LOGIN, token
from myhealth_cli.tokens import minimal_env

if TYPE_CHECKING:
    from myhealth_cli.deploy.environments import Deployed
    from myhealth_cli.deploy.state import App

_MARK: Final = Path("agent-backend/fly.toml")
RECORDS: Final = Path(".local/deploys")


class Ground(msgspec.Struct, frozen=True):
    """The checkout's root and a flyctl that is logged in."""

    root: Path
    fly: Flyctl

    @property
    def records(self) -> Path:
        """Where locks and records for people are kept."""
        return self.root / RECORDS


def checkout(folder: Path | None = None) -> Path:
    """Return the root of the checkout that `folder` (by default the current one) lies in.

    Raises NothingChangedError: it lies in none.
    """
    folder = (folder or Path.cwd()).resolve()
    for each in (folder, *folder.parents):
        if (each / _MARK).is_file():
            return each
    raise NothingChangedError(
        "this is not a checkout of the repository", hint=f"cd to where {_MARK} is, and say it again"
    )


async def stand() -> Ground:
    """Find the checkout and flyctl, and see that it has a token. Raises NothingChangedError.

    Whether Fly takes the token is seen when the app is read: what else a deploy token may ask is not known.
    """
    root = checkout()
    fly = Flyctl(flyctl.find(folder=root), root)
    try:
        await token(fly)
    except FlyctlError as error:
        raise NothingChangedError(str(error), hint=error.hint or LOGIN) from error
    return Ground(root, fly)


async def app_of(ground: Ground, environment: Deployed) -> App:
    """Read an environment's app. Raises NothingChangedError when Fly does not answer."""
    try:
        return await state.read(ground.fly, environment.app)
    except FlyctlError as error:
        raise NothingChangedError(
            f"{environment.app} cannot be read: {error}",
            hint=f"Is the network there, and the token this app's? Else {LOGIN}",
        ) from error


def no_app(environment: Deployed) -> NothingChangedError:
    """Return the error that says so."""
    return NothingChangedError(
        f"there is no app {environment.app}, or this login does not see it",
        hint=f"myhealth setup {environment.name}",
    )


async def commit(root: Path) -> str:
    """Return the commit that is checked out, 12 digits. Raises NothingChangedError: none, or changes."""
    try:
        found = await _git(root, "rev-parse", "--short=12", "HEAD")
        changes = await _git(root, "status", "--porcelain")
    except (OSError, ValueError) as error:
        raise NothingChangedError(
            f"git does not say what is checked out: {error}",
            hint="deploy from a git checkout, or with --image",
        ) from error
    if changes:
        raise NothingChangedError(
            "the checkout has changes that are in no commit",
            hint="commit or stash them, or deploy an --image",
        )
    return found


async def _git(root: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "git",
        *arguments,
        cwd=root,
        env=minimal_env(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise ValueError(err.decode("utf-8", "replace").strip()[:200] or "it failed")
    return out.decode().strip()
