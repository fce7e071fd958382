"""The values of an environment's secrets: read from a file or asked for, and looked at before Fly gets them.

What a value must look like the server itself knows: `agent-backend check-config`, run with the values as its
environment and with what fly.toml sets. No text here quotes a value, or a name that was not expected: a key
that was pasted into the wrong place is still a key.
"""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.deploy.envfile import unfit
from myhealth_cli.deploy.environments import ENVIRONMENTS
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.tokens import backend_command, minimal_env

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from myhealth_cli.deploy.environments import Deployed

_CHECK_S: Final = 60.0
_A_FILE: Final = "name a file of KEY=VALUE lines"
_ALL: Final = frozenset(secret.name for each in ENVIRONMENTS for secret in each.secrets)
_WHY: Final = {
    secret.name: secret.why
    for each in ENVIRONMENTS
    for secret in each.secrets
    if secret.place == "fly secrets"
}


# --- a file ---------------------------------------------------------------------------------------


def read_file(file: Path) -> dict[str, str]:
    """Read KEY=VALUE lines, as a shell or flyctl would: `export`, quotes and comments are taken off.

    Raises NothingChangedError, which names the line and never quotes it: it is no such line, has no value, or
    its name stands there twice or is no environment's.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NothingChangedError(f"{file} is no UTF-8 text", hint=_A_FILE) from error
    except OSError as error:
        raise NothingChangedError(f"{file} cannot be read: {error.strerror}", hint=_A_FILE) from error
    found: dict[str, str] = {}
    # Not splitlines(): it also cuts at form feeds and Unicode's separators, in the middle of a value.
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, value = _pair(stripped, f"{file}, line {number}")
        if name in found:
            raise NothingChangedError(f"{file}, line {number} sets {name} again", hint="leave one of them")
        found[name] = value
    return found


def _pair(line: str, where: str) -> tuple[str, str]:
    name, sign, rest = line.removeprefix("export ").partition("=")
    name = name.strip()
    if not sign or not name.isidentifier():
        raise NothingChangedError(f"{where} is not KEY=VALUE", hint="correct that line")
    if name not in _ALL:
        raise NothingChangedError(
            f"{where} sets a name that no environment has", hint="`myhealth environments` lists the names"
        )
    value = _unquoted(rest.strip())
    if not value:
        raise NothingChangedError(f"{where}: {name} has no value", hint="give it one, or remove the line")
    return name, value


def _unquoted(value: str) -> str:
    """Take off quotes around a value, or a comment after it (` # ...`)."""
    quoted = re.fullmatch(r"""(?P<quote>["'])(?P<inside>.*)(?P=quote)(\s+#.*)?""", value)
    if quoted:
        return quoted["inside"].strip()
    return re.split(r"(?:^|\s+)#", value, maxsplit=1)[0].rstrip()


def seen_by_others(file: Path) -> bool:
    """Say whether other users of this machine may read a file."""
    try:
        return bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


# --- a person -------------------------------------------------------------------------------------


def ask(
    names: Sequence[str],
    *,
    needed: Sequence[str],
    prompt: Callable[[str], str],
    check: Callable[[Mapping[str, str]], list[Problem]],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Ask for values by name until they fit, and return them.

    An empty answer leaves a name out, unless it is among `needed`. What `check` finds wrong is told, and
    every name it speaks of is asked for again. What `prompt` raises when a person gives up goes through.
    """
    values: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if not (value := prompt(f"{name}: {_WHY[name]}").strip()):
            if name in needed:
                tell(f"{name} is needed; Ctrl-C ends this, and nothing is changed")
                waiting.insert(0, name)
            continue
        values[name] = value
        wrong = [problem for problem in check(values) if not problem.warning]
        for problem in wrong:
            tell(f"{problem.says}\n  {problem.hint}")
        again = [each for each in names if any(each in problem.says for problem in wrong)]
        for each in again:
            values.pop(each, None)
        waiting = [*again, *(each for each in waiting if each not in again)]
    return values


# --- what they look like --------------------------------------------------------------------------


class Problem(msgspec.Struct, frozen=True):
    """Something about a value. `says` begins with the variable's name; `warning`: it is only doubtful."""

    says: str
    hint: str
    warning: bool = False


class Said(msgspec.Struct, frozen=True):
    """What the server says of one setting or file."""

    problem: str
    hint: str = ""


class Report(msgspec.Struct, frozen=True):
    """What `agent-backend check-config --json` prints."""

    errors: tuple[Said, ...] = ()
    warnings: tuple[Said, ...] = ()


def look(environment: Deployed, root: Path, values: Mapping[str, str]) -> list[Problem]:
    """Have the server look at values as this environment's, and return what it says of them.

    Raises NothingChangedError: the server cannot be asked.
    """
    report = config_report(environment, root, values)
    found = [
        *(Problem(each.problem, each.hint) for each in report.errors),
        *(Problem(each.problem, each.hint, warning=True) for each in report.warnings),
    ]
    found += [
        Problem(f"{name} {reason}", "copy it again from where it came from")
        for name, value in values.items()
        if (reason := unfit(value))
    ]
    return [each for each in found if each.says.partition(" ")[0] in values]


def drafts(environment: Deployed, root: Path) -> list[str]:
    """Return the files of a checkout that this environment needs signed, and that no named person has signed.

    Raises NothingChangedError: the server cannot be asked.
    """
    report = config_report(environment, root, {})
    said = (each.problem for each in (*report.errors, *report.warnings))
    return [each.partition(" ")[0] for each in said if "is a draft" in each]


def config_report(environment: Deployed, root: Path, values: Mapping[str, str]) -> Report:
    """Return what `agent-backend check-config` says. Raises NothingChangedError: nothing."""
    try:
        settings = tomllib.loads((root / environment.config).read_text("utf-8")).get("env", {})
        env = {name: str(value) for name, value in settings.items()} | dict(values)
        ended = subprocess.run(  # noqa: S603 - our own words
            backend_command("check-config", "--json"),
            cwd=root,
            # In its environment, which only this user can read; never on its command line.
            env={**minimal_env(), "FLY_APP_NAME": environment.app, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_S,
            check=False,
        )
        return msgspec.json.decode(ended.stdout, type=Report)
    except (OSError, ValueError, subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
        raise NothingChangedError(
            f"the values cannot be looked at ({type(error).__name__})",
            hint=f"see that `{sys.executable} -m agent_backend check-config` runs: `make run` installs it",
        ) from error
