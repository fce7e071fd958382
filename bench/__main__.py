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
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from bench import reconnect, report
from bench.client import Failed
from bench.cloud import Cloud
from bench.figures import FIGURES, Part, Samples
from bench.measure import QUICK, Bench, Load, Size, at
from bench.processes import Process, cores, free_port
from bench.targets import Emulator, Floor, Ours, Postgres, Sleep, Target
from bench.wake import FIRST, Sleeper, Wakes

OUT = Path(__file__).parent / "out"
_BOOTS = 9
_ONCE: set[Part] = {"boot", "wake", "reconnect", "open"}
"""What is not measured anew in each round."""


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
            run.round(number + 1, parts - _ONCE)
        if "open" in parts:
            run.open_streams()
        if parts & {"wake", "reconnect"}:
            run.behind_fly(parts)
    lines = [
        report.machine(),
        "",
        *report.table(run.samples),
        "",
        *report.shares(run.loads),
        "",
        *report.details(run.loads),
        *run.notes,
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
        self.notes: list[str] = []
        self._size = size
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
        self._folder = folder
        self._ours = Ours(on, folder, postgres.url, emulator.url)
        self._floor = Floor(on, folder, emulator.url)
        self._targets: tuple[Target, ...] = (self._ours, self._floor)
        # What the harness has made so far stays; its collector need not look at it again.
        gc.freeze()

    def boots(self, count: int) -> None:
        """Boot both in turn; the first time of each only fills the file cache."""
        _say(f"boot, {count} times")
        for target in self._targets:
            target.start()[0].stop()
        for _ in range(count):
            self._boot()

    def _boot(self) -> None:
        for target in self._targets:
            process, milliseconds = target.start()
            process.stop()
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

    def open_streams(self) -> None:
        """See what a process holds idle, with some streams open and with more: what one more takes."""
        fewer, more = self._size.open
        for target in self._targets:
            process, _ = target.start()
            try:
                idle = self._bench.idle(target, process)
                held: list[float] = []
                for count in (fewer, more):
                    _say(f"{count} open streams, {target.name}")
                    load = self._note(
                        f"open {count}", target.name, self._bench.open_streams(target, process, count)
                    )
                    held.append(load.pss_mb)
            except Failed as failed:
                raise SystemExit(f"bench: {target.name}: {failed}\n{process.output()}") from failed
            finally:
                process.stop()
            each = (held[1] - held[0]) / (more - fewer)
            self.samples.add("streams_per_gb", target.name, (1024 - idle) / each)
            self.notes.append(
                f"streams {target.name}: PSS {idle:.0f} MB idle, {held[0]:.0f} with {fewer} streams, "
                f"{held[1]:.0f} with {more}: {each * 1024:.0f} KB a stream"
            )

    def behind_fly(self, parts: set[Part]) -> None:
        """Wake, and harm, machines behind the local Fly."""
        if "wake" in parts:
            self._wakes()
        if "reconnect" in parts:
            self._reconnects()

    def _wakes(self) -> None:
        _say(f"wakes, {self._size.wakes} times each way")
        metrics = free_port()
        with ExitStack() as stack:

            def cloud(name: str, target: Target, sleep: Sleep, metrics_port: int = 0) -> Cloud:
                made = target.cloud(sleep, self._folder / name, metrics_port)
                stack.callback(made.stop)
                return made

            floor = Sleeper(self._floor, cloud("fly-floor", self._floor, "never"))
            wakes = Wakes(
                [Sleeper(self._ours, cloud("fly-exit", self._ours, "exit", metrics), metrics), floor],
                [Sleeper(self._ours, cloud("fly-suspend", self._ours, "suspend")), floor],
            )
            wakes.run(self._size.wakes, self.samples, self._boot)
        model = self._bench.model_first_ms(FIRST, 1)
        self.notes.append(
            f"the model's own first token: {model:.1f} ms, which the wakes to a first token contain"
        )
        self.notes.append(wakes.told())

    def _reconnects(self) -> None:
        _say("readers whose connections break")
        readers, turns = self._size.readers, self._size.reader_turns
        with self._harmed(self._ours) as cloud:
            self._lost("ours", uvloop.run(reconnect.ours(self._ours, cloud, readers, turns)))
        with self._harmed(self._floor) as cloud:
            self._lost("floor", uvloop.run(reconnect.floor(cloud, readers, turns)))

    @contextmanager
    def _harmed(self, target: Target) -> Generator[Cloud]:
        cloud = target.cloud("never", self._folder / f"fly-harmed-{target.name}")
        try:
            yield cloud
        finally:
            cloud.stop()

    def _lost(self, side: str, loss: reconnect.Loss) -> None:
        self.samples.add("reconnect_lost_events", side, loss.lost + loss.doubled)
        self.notes.append(
            f"reconnect {side}: {loss.breaks} broken connections, {loss.events} events came, "
            f"{loss.lost} lost, {loss.doubled} doubled"
        )

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
