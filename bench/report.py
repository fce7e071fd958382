"""The table people read and the file machines read."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path
from statistics import median

import msgspec

from bench.figures import FIGURES, Figure, Samples
from bench.measure import Load, Shares

_ROW = "{:<29} {:>9} {:>9} {:>7}  {:<15} {:<8} {:>13}"
_SHARE_ROW = "{:<16} {:>8} {:>8} {:>8} {:>9}  {}"


def machine() -> str:
    """Describe where the run took place."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{now}, load average {os.getloadavg()[0]:.1f}"
    )


def table(samples: Samples) -> list[str]:
    """Return the figures' lines: medians, their ratio, the goal, and how far the rounds lie apart."""
    lines = [_ROW.format("figure", "ours", "floor", "ratio", "goal", "", "spread")]
    boot = samples.median("boot_ready_ms", "ours") if samples.has("boot_ready_ms") else None
    for figure in FIGURES:
        if not samples.has(figure.key):
            continue
        ours, floor = samples.median(figure.key, "ours"), samples.median(figure.key, "floor")
        lines.append(
            _ROW.format(
                figure.key,
                f"{ours:.1f}",
                f"{floor:.1f}",
                f"{ours / floor:.2f}" if floor > 0 else "-",
                figure.goal,
                _verdict(figure, ours, floor, boot),
                f"{samples.spread(figure.key, 'ours'):.0%} / {samples.spread(figure.key, 'floor'):.0%}",
            )
        )
    return lines


def _verdict(figure: Figure, ours: float, floor: float, boot: float | None) -> str:
    if not figure.goal:
        return ""
    return "reached" if figure.reached(ours, floor, boot) else "MISSED"


def shares(loads: dict[tuple[str, str], list[Load]]) -> list[str]:
    """Return how busy each process was: what is near one core is what limited the run."""
    lines = [_SHARE_ROW.format("cores used", "server", "model", "client", "postgres", "")]
    for (part, side), runs in loads.items():
        middle = Shares(*(median(values) for values in zip(*(run.shares for run in runs), strict=True)))
        other = sum(middle[1:])
        full = "the other core was full" if other > 0.9 else ""
        lines.append(_SHARE_ROW.format(f"{part} {side}", *(f"{share:.2f}" for share in middle), full))
    return lines


def details(loads: dict[tuple[str, str], list[Load]]) -> list[str]:
    """Return what the figures leave out."""
    lines: list[str] = []
    for (part, side), runs in loads.items():
        per_turn = median(run.cpu_ms / run.turns for run in runs)
        p50 = median(run.delays[len(run.delays) // 2] for run in runs)
        rate = median(run.turns / run.seconds for run in runs)
        lines.append(
            f"{part} {side}: {per_turn:.2f} ms CPU per turn, {rate:.0f} turns/s, "
            f"delay of a delta p50 {p50:.1f} ms, PSS {median(run.pss_mb for run in runs):.0f} MB"
        )
    return lines


def write(samples: Samples, lines: list[str], folder: Path) -> None:
    """Write results.json (figure -> ours, floor, unit) and the printed report beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        figure.key: {
            "ours": round(samples.median(figure.key, "ours"), 2),
            "floor": round(samples.median(figure.key, "floor"), 2),
            "unit": figure.unit,
        }
        for figure in FIGURES
        if samples.has(figure.key)
    }
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=2)
    (folder / "results.json").write_bytes(encoded + b"\n")
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
