"""The runbooks are typed as they stand, page after page, at the local Fly."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import pytest

from .night import Night
from .scripts import SCRIPTS, Typed
from .stage import find, stage

FLYCTL = find()
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def night(tmp_path: Path) -> Generator[Night]:
    with stage(tmp_path, FLYCTL) as made:
        yield Night(made, FLYCTL)


def test_every_page_is_typed_in_its_order(night: Night) -> None:
    """One world for all pages, as an app's first months: that is also the quickest."""
    for page, script in SCRIPTS.items():
        began = time.monotonic()
        for each in script:
            enter(night, page, each)
        print(f"{page}: {len(script)} commands, {time.monotonic() - began:.1f} s")  # noqa: T201 - asked for


def enter(night: Night, page: str, typed: Typed) -> None:
    if typed.before is not None:
        typed.before(night)
    if typed.real and not night.flyctl_is_real:
        return
    ended = night.type(typed.command, typed.stdin)
    assert ended.code in typed.codes, (page, typed.command, ended)
    for each in typed.says:
        assert each in ended.out + ended.err, (page, typed.command, each, ended)
