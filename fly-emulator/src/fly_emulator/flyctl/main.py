"""`flyctl-emulator`: the table of commands, exit codes and how errors are told.

Exit codes as flyctl's (`internal/cli/cli.go`): 0, 1, 127 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from fly_emulator.flyctl import commands as do
from fly_emulator.flyctl import machine_commands as machine
from fly_emulator.flyctl.errors import FlyctlError, Interrupted
from fly_emulator.flyctl.words import Call, Command, Flag, read

INTERRUPTED: Final = 127
_TOKEN: Final = {"access-token": Flag(short="t")}
_APP: Final = {**_TOKEN, "app": Flag(short="a"), "config": Flag(short="c")}
_JSON: Final = {"json": Flag(default=False, short="j")}
_YES: Final = {"yes": Flag(default=False, short="y")}


def _deploy(call: Call) -> None:
    # Reading a fly.toml takes imports that no other command needs.
    from fly_emulator.flyctl.deploy import deploy  # noqa: PLC0415

    deploy(call)


COMMANDS: Final = {
    "version": Command(do.version, _JSON),
    "auth whoami": Command(do.whoami, {**_TOKEN, **_JSON}),
    "auth token": Command(do.token, {**_TOKEN, **_JSON, "quiet": Flag(default=False, short="q")}),
    "apps create": Command(do.create, {**_TOKEN, **_YES, "org": Flag(short="o"), "name": Flag()}, most=1),
    "apps list": Command(do.apps, {**_TOKEN, **_JSON}),
    "config validate": Command(do.validate, {**_APP, "strict": Flag(default=False, short="s")}),
    "deploy": Command(
        _deploy,
        {
            **_APP,
            **_YES,
            "image": Flag(short="i"),
            "env": Flag(default=(), short="e"),
            "strategy": Flag(),
            "wait-timeout": Flag(),
            "release-command-timeout": Flag(),
            "dns-checks": Flag(default=True),
            "ha": Flag(default=True),
            "smoke-checks": Flag(default=True),
            "skip-release-command": Flag(default=False),
            "exclude-machines": Flag(default=()),
        },
    ),
    "logs": Command(do.logs, {**_APP, **_JSON, "no-tail": Flag(default=False, short="n"), "machine": Flag()}),
    "machine list": Command(do.machines, {**_APP, **_JSON}),
    "machine cordon": Command(machine.cordon, _APP, most=99),
    "machine destroy": Command(machine.destroy, {**_APP, "force": Flag(default=False, short="f")}, most=99),
    "machine start": Command(machine.start, _APP, most=99),
    "machine uncordon": Command(machine.uncordon, _APP, most=99),
    "machine stop": Command(
        machine.stop,
        {**_APP, "signal": Flag(short="s"), "timeout": Flag(), "wait-timeout": Flag(short="w")},
        most=99,
    ),
    "releases": Command(do.releases, {**_APP, **_JSON, "image": Flag(default=False)}),
    "secrets import": Command(do.import_secrets, {**_APP, "stage": Flag(default=False)}),
    "secrets list": Command(do.secrets, {**_APP, **_JSON}),
    "tokens create deploy": Command(
        do.deploy_token,
        {
            **_APP,
            **_JSON,
            "name": Flag(default="flyctl deploy token", short="n"),
            "expiry": Flag(default="175200h", short="x"),
        },
    ),
    "status": Command(do.status, {**_APP, **_JSON}),
}


def run(words: Sequence[str]) -> int:
    """Run a command; return the exit code."""
    try:
        call = read(words, COMMANDS)
        call.run(call)
    except FlyctlError as error:
        sys.stderr.write(f"Error: {error}\n" + (f"{error.more}\n\n" if error.more else ""))
        return 1
    except Interrupted:
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    return 0


def main() -> NoReturn:
    """Entry point of the console script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: a thread may still refresh a lease.
    os._exit(code)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted
