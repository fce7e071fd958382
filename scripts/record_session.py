"""Records docs/design/sleep-session.txt: a run of `make run` without a terminal, each line with its time.

    .venv/bin/python scripts/record_session.py

The scripted conversation lets the machine fall asleep before its last question. Below stands what the local
Fly logged meanwhile. Long lines are cut and paths begin at the repository; nothing else is changed.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "design" / "sleep-session.txt"
WIDTH = 110
TOLD = ("runner[", "proxy[", "health[")
"""Sources of the log that tell of the machine; `app` is what the backend itself logs."""


def main() -> None:
    """Run, record, write."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        shown = record([sys.executable, "-m", "myhealth_cli", "dev", "--port", str(port), "--data", folder])
        logged = Path(folder, str(port), "logs", "fly-emulator.log").read_text("utf-8").splitlines()
    began = next(number for number, line in enumerate(logged) if "falling_asleep" in line)
    told = [line for line in logged[began:] if any(source in line for source in TOLD)]
    text = "\n".join(
        [*header(), "", *shown, "", "What the local Fly logged from falling asleep on:", "", *told]
    )
    TARGET.write_text("\n".join(cut(line) for line in text.splitlines()) + "\n", encoding="utf-8")
    print(f"wrote {TARGET.name}: {len(shown)} + {len(told)} lines")


def header() -> list[str]:
    """Return the lines that say when and where this was recorded."""
    system = f"{platform.system()} on {os.cpu_count()} virtual cores, Python {platform.python_version()}"
    return [
        "make run </dev/null: idle -> asleep -> message -> awake -> answer",
        f"Recorded {dt.datetime.now(dt.UTC).date()} by scripts/record_session.py, {system};",
        "embedded Postgres, emulated Messages API. The first column is seconds since the start.",
    ]


def record(command: list[str]) -> list[str]:
    """Run the command and return its lines, each with the moment its first byte came."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines: list[tuple[float, bytes]] = [(0.0, b"")]
    while data := os.read(process.stdout.fileno(), 65536):
        now = time.monotonic() - began
        first, *rest = data.split(b"\n")
        at, text = lines[-1]
        lines[-1] = (at if text else now, text + first)
        lines += [(now, each) for each in rest]
    if process.wait() != 0:
        raise SystemExit(f"it failed with {process.returncode}: {lines}")
    return [f"{at:7.3f}  {text.decode()}".rstrip() if text else "" for at, text in lines[:-1]]


def cut(line: str) -> str:
    """Shorten a line to the page's width; paths begin at the repository."""
    line = line.replace(f"{ROOT}/", "")
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


if __name__ == "__main__":
    main()
