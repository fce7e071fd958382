from __future__ import annotations

import sys
from pathlib import Path

import psutil

from myhealth_cli.processes import Child, Family

from .devprocess import gone, until

APART = """
import subprocess, sys, time
command = [sys.executable, "-c", "import time; time.sleep(600)"]
apart = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
print(apart.pid, flush=True)
time.sleep(600)
"""


async def start_with_one_apart(family: Family) -> tuple[Child, psutil.Process]:
    """Start a server that has started another one in a session of its own."""
    child = await family.start("server", [sys.executable, "-c", APART], {}, speaks=True)
    return child, psutil.Process(int(await child.first_line()))


async def test_what_a_killed_server_has_started_apart_ends_with_the_family(tmp_path: Path) -> None:
    async with Family(tmp_path) as family:
        child, apart = await start_with_one_apart(family)
        child.process.kill()
        await child.process.wait()
        assert not gone([apart])
    assert gone([apart])


async def test_one_family_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with Family(tmp_path / "a") as lasting:
        _, apart = await start_with_one_apart(lasting)
        async with Family(tmp_path / "b") as other:
            _, short = await start_with_one_apart(other)
        assert gone([short])
        assert not gone([apart])
    until("the family that lasted ends its own", lambda: gone([apart]))


async def test_a_last_message_of_its_own_is_quoted_whole_and_other_output_by_its_last_lines(
    tmp_path: Path,
) -> None:
    told = "for n in range(50): print(n)\nprint('talker: it broke\\n  because')\nraise SystemExit(2)"
    async with Family(tmp_path) as family:
        talker = await family.start("talker", [sys.executable, "-c", told], {})
        other = await family.start("other", [sys.executable, "-c", told], {})
        await talker.process.wait()
        await other.process.wait()
        assert str(talker.failure()) == "talker ended with code 2:\n  talker: it broke\n    because"
        assert "\n  49\n" in str(other.failure())
        assert "\n  30\n" not in str(other.failure())
