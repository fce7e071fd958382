"""`make soak`: a thousand faults behind the local Fly, in rounds of fixed seeds; prints a table.

Writes acceptance/out/soak.json. A round that breaks a promise is named with its seed; `--seed N --flavour F`
runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from .cloud import FLAVOURS, Flavour
from .stack import emulator, own_postgres
from .storm import Report, cloud_round

OUT = Path(__file__).resolve().parent / "out"
ROUND = 50
PHONES = 4
"""Few enough that all of them are away now and then: machines fall asleep in the midst of a storm."""
KINDS = {
    "stuck": ("stuck", "unfinished", "does not end"),
    "doubled": ("twice", "again", "overlaps", "other than once", "dead epoch", "not accepted"),
}


def kind_of(broken: str) -> str:
    """Name what was broken: lost, doubled or stuck."""
    return next((kind for kind, words in KINDS.items() if any(word in broken for word in words)), "lost")


def main() -> int:
    """Run the rounds; return 1 when anything was lost, doubled or stuck."""
    parser = argparse.ArgumentParser(prog="python -m acceptance.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--flavour", choices=list(FLAVOURS), help="all of them in turn, if not given")
    parser.add_argument("--side-by-side", type=int, default=3, help="rounds at a time (default 3)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)  # so that everything started is ended
    began = time.monotonic()
    plan = _plan(options.faults, options.seed, options.flavour)
    reports = asyncio.run(_rounds(plan, options.side_by_side))
    result = _result(reports)
    _print(reports, result, time.monotonic() - began)
    OUT.mkdir(exist_ok=True)
    (OUT / "soak.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["lost"] or result["doubled"] or result["stuck"] else 0


def _terminated(_signal: int, _frame: object) -> None:
    sys.exit(1)


class Round(NamedTuple):
    """A storm to come."""

    seed: int
    flavour: Flavour
    faults: int


def _plan(faults: int, seed: int, flavour: str | None) -> list[Round]:
    flavours = cycle([FLAVOURS[flavour]] if flavour else FLAVOURS.values())
    counts = [min(ROUND, faults - done) for done in range(0, faults, ROUND)]
    return [Round(n, next(flavours), count) for n, count in enumerate(counts, seed)]


async def _rounds(plan: list[Round], workers: int) -> list[Report]:
    """Run the rounds, some side by side: each worker has a Postgres and a model of its own."""
    reports: list[Report] = []
    waiting = deque(plan)

    async def work() -> None:
        with emulator() as model, own_postgres() as database, tempfile.TemporaryDirectory() as folder:
            while waiting:
                round_ = waiting.popleft()
                place = Path(folder) / f"{round_.seed}-{round_.flavour.name}"
                report = await cloud_round(
                    database,
                    model,
                    place,
                    round_.flavour,
                    seed=round_.seed,
                    faults=round_.faults,
                    phones=PHONES,
                )
                reports.append(report)
                print(_line(report), flush=True)
                if report.broken:
                    (OUT / place.name).mkdir(parents=True, exist_ok=True)
                    (OUT / place.name / "fly-emulator.log").write_bytes(
                        (place / "fly-emulator.log").read_bytes()
                    )

    async with asyncio.TaskGroup() as group:
        for _ in range(min(workers, len(plan))):
            group.create_task(work())
    return sorted(reports)


def _line(report: Report) -> str:
    verdict = f"BROKEN ({kind_of(report.broken)}): {report.broken}" if report.broken else "kept"
    return (
        f"seed {report.seed:3} {report.flavour:14} {report.faults.total():4} faults {report.turns:5} turns "
        f"{report.reconnects:5} reconnects  {verdict}"
    )


def _result(reports: list[Report]) -> dict[str, object]:
    by_fault = sum((report.faults for report in reports), Counter[str]())
    broken = Counter(kind_of(report.broken) for report in reports if report.broken)
    return {
        "faults": by_fault.total(),
        "turns": sum(report.turns for report in reports),
        "lost": broken["lost"],
        "doubled": broken["doubled"],
        "stuck": broken["stuck"],
        "by_fault": dict(by_fault.most_common()),
        "seeds": [[report.seed, report.flavour] for report in reports],
    }


def _print(reports: list[Report], result: dict[str, object], seconds: float) -> None:
    by_fault = sum((report.faults for report in reports), Counter[str]())
    print(f"\n{'fault':24}{'times':>6}")
    for name, count in by_fault.most_common():
        print(f"{name:24}{count:>6}")
    print(f"{'all':24}{by_fault.total():>6}")
    print(
        f"\n{result['turns']} turns: {result['lost']} lost, {result['doubled']} doubled, "
        f"{result['stuck']} stuck; {seconds:.0f} s on {platform.machine()}, {sys.version.split()[0]}"
    )


if __name__ == "__main__":
    sys.exit(main())
