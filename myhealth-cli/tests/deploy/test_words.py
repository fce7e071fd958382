"""What flyctl says is told on, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from myhealth_cli.deploy.errors import FlyctlError
from myhealth_cli.deploy.flyctl import Flyctl

_RELEASE_COMMAND = """\
Checking logs: fetching the last 100 lines below:
\x1b[2m2026-11-28T00:41:50Z\x1b[0m Preparing to run: `agent-backend migrate`
\x1b[2m2026-11-28T00:41:51Z\x1b[0m agent-backend: the database belongs to another app
\x1b[2m2026-11-28T00:41:51Z\x1b[0m   hint: point DATABASE_URL at this environment's own
\x1b[2m2026-11-28T00:41:51Z\x1b[0m Main child exited normally with code: 2
Error: release command failed
"""
_QUERY = (
    'Error: failed retrieving the user: failed to run query { viewer { ... on User { id } } }: Post "h": no'
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            _RELEASE_COMMAND,
            (
                "release command failed; agent-backend: the database belongs to another app; "
                "hint: point DATABASE_URL at this environment's own"
            ),
        ),
        (_QUERY, 'failed retrieving the user: Post "h": no'),
        ("Error: app name 'x' is taken", "app name 'x' is taken"),
    ],
)
async def test_the_reason_is_told(tmp_path: Path, said: str, told: str) -> None:
    (tmp_path / "said").write_text(said, "utf-8")
    program = tmp_path / "flyctl"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 1\n", "utf-8")
    program.chmod(0o755)
    with pytest.raises(FlyctlError) as error:
        await Flyctl(program, tmp_path).run("deploy")
    assert str(error.value) == told
