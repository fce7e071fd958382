"""`python -m bench`: our server beside the floor, in turn, in one run of a few minutes.

The server has the first core to itself; the emulated model, the client and Postgres share the others.
Everything is on loopback, and everything started is ended.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.client import Failed
from bench.figures import FIGURES, Part, Samples
from bench.measure import QUICK, Bench, Load, Size, at
from bench.processes import Process, cores
from bench.targets import Emulator, Floor, Ours, Postgres, Target

OUT = Path(__file__).parent / "out"
_BOOTS = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 also when a goal is missed, because machines differ."""
    arguments = _arguments(argv)
    if not hasattr(os, "sched_setaffinity"):
        sys.stderr.write("bench reads /proc and pins processes to cores: it needs Linux\n")
        return 2
    signal.signal(signal.SIGTERM, _terminated)  # so that everything started is ended
    wanted: list[str] = arguments.only or [figure.key for figure in FIGURES]
    parts: set[Part] = {figure.part for figure in FIGURES if figure.key in wanted}
    with ExitStack() as stack:
        run = Run(stack, QUICK if arguments.quick else Size())
        if "boot" in parts:
            run.boots(3 if arguments.quick else _BOOTS)
        for number in range(arguments.rounds or (1 if arguments.quick else 3)):
            run.round(number + 1, parts - {"boot"})
    lines = [
        report.machine(),
        "",
        *report.table(run.samples),
        "",
        *report.shares(run.loads),
        "",
        *report.details(run.loads),
    ]
    print("\n".join(lines))
    report.write(run.samples, lines, OUT)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    keys = [figure.key for figure in FIGURES]
    parser.add_argument("--only", action="append", choices=keys, help="measure this figure (may be repeated)")
    parser.add_argument("--rounds", type=int, help="how often each side is measured in turn (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short round: to see whether it works")
    return parser.parse_args(argv)


class Run:
    """One run: what is started, and what is measured so far."""

    def __init__(self, stack: ExitStack, size: Size) -> None:
        self.samples = Samples()
        self.loads: dict[tuple[str, str], list[Load]] = {}
        on = cores()
        os.sched_setaffinity(0, on.others)
        folder = Path(tempfile.mkdtemp(prefix="myhealth-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _say("starting Postgres and the emulated model")
        postgres = Postgres(folder)
        stack.callback(postgres.stop)
        emulator = Emulator(on, folder)
        stack.callback(emulator.stop)
        self._bench = Bench(emulator, postgres, size)
        self._targets: tuple[Target, ...] = (
            Ours(on, folder, postgres.url, emulator.url),
            Floor(on, folder, emulator.url),
        )
        # What the harness has made so far stays; its collector need not look at it again.
        gc.freeze()

    def boots(self, count: int) -> None:
        """Boot both in turn; the first time of each only fills the file cache."""
        _say(f"boot, {count} times")
        for number in range(count + 1):
            for target in self._targets:
                process, milliseconds = target.start()
                process.stop()
                if number:
                    self.samples.add("boot_ready_ms", target.name, milliseconds)

    def round(self, number: int, parts: set[Part]) -> None:
        """Measure both sides once, each in a fresh process."""
        if not parts:
            return
        for target in self._targets:
            process, _ = target.start()
            try:
                self._measure(number, target, process, parts)
                process.check()
            except Failed as failed:
                raise SystemExit(f"bench: {target.name}: {failed}\n{process.output()}") from failed
            finally:
                process.stop()

    def _measure(self, number: int, target: Target, process: Process, parts: set[Part]) -> None:
        bench, add, name = self._bench, self.samples.add, target.name
        if "idle" in parts:
            _say(f"round {number}: idle, {name}")
            add("idle_pss_mb", name, bench.idle(target, process))
        bench.warm_up(target)
        if "stream" in parts:
            _say(f"round {number}: stream, {name}")
            load = self._note("stream", name, bench.stream(target, process))
            add("stream_cpu_ms_per_1k", name, load.cpu_ms_per_1k)
            add("added_ttft_p50_ms", name, at(0.5, load.firsts) - bench.model_first_ms())
        if "short" in parts:
            _say(f"round {number}: short, {name}")
            load = self._note("short", name, bench.short(target, process))
            add("short_turns_per_s", name, load.turns / load.seconds)
        if "crowd" in parts:
            _say(f"round {number}: crowd, {name}")
            load = self._note("crowd", name, bench.crowd(target, process))
            add("crowd_cpu_ms_per_1k", name, load.cpu_ms_per_1k)
            add("crowd_p99_ms", name, at(0.99, load.delays))
            add("crowd_pss_mb", name, load.pss_mb)

    def _note(self, part: str, side: str, load: Load) -> Load:
        self.loads.setdefault((part, side), []).append(load)
        return load


def _terminated(_signal: int, _frame: object) -> None:
    sys.exit(1)


_began = time.monotonic()


def _say(text: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _began:5.1f} s] {text}\n")


if __name__ == "__main__":
    sys.exit(main())
