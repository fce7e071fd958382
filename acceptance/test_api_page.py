"""docs/design/api.md as a reader follows it: its `sh` blocks in one shell, and its Python client."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Pair
from .stack import Site

PAGE = Path(__file__).resolve().parents[1] / "docs" / "design" / "api.md"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS = 60
_PYTHON = 'export URL TOKEN SESSION\npython3 - <<"END_OF_BLOCK"\n{}END_OF_BLOCK\n'
_SAYS = (
    '{"status":"alive"}',
    '{"status":"ready"}',
    '"time_zone":"Europe/Berlin"',
    '"purpose":"third_party_ai"',
    '"given":true',
    '"left_usd_micros"',
    '"target":8000.0',
    '{"received":2,"stored":2,"unchanged":0,"replaced":0}',
    '"value":5500.0,"samples":2,"sources":["Watch","iPhone"]',
    '"title":"Steps"',
    "get_daily_metrics",
    '"stopReason":"end_turn"',
    '"state":"',
    '"role":"assistant"',
    '"device":"my-iphone"',
    "RUN_STARTED 1",
    "RUN_FINISHED 1",
    '"detail":"$.mood: is not a field of this request"',
)
"""What the blocks print, in this order."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page is written for curl")
def test_the_blocks_do_in_order_what_the_page_says(pair: Pair, site: Site, tmp_path: Path) -> None:
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 15
    script = tmp_path / "page.sh"
    script.write_text(
        "set -euo pipefail\n"
        + "".join(code if kind == "sh" else _PYTHON.format(code) for kind, code in blocks),
        encoding="utf-8",
    )
    done = subprocess.run(
        ["bash", str(script)],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "URL": pair.a.url,
            "TOKEN": site.headers("reader")["Authorization"].removeprefix("Bearer "),
        },
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-2000:]}"
    rest = done.stdout
    for words in _SAYS:
        before, found, rest = rest.partition(words)
        assert found, f"{words!r} is not in what follows: {before[:4000]!r}"
