"""Machine sizes and their bounds.

Source: superfly/fly-go 22d6e51 (2026-08-21) `machine_types.go`: MachinePresets, MIN_MEMORY_MB_PER_SHARED_CPU,
MIN_MEMORY_MB_PER_CPU and their maxima; flyctl's DefaultVMSize and DefaultGPUVMSize.
"""

from __future__ import annotations

from fly_emulator.machine_config import Guest

DEFAULT_SIZE = "shared-cpu-1x"
DEFAULT_GPU_SIZE = "performance-8x"

MEMORY_PER_CPU: dict[str, tuple[int, int]] = {"shared": (256, 2048), "performance": (2048, 8192)}
"""Least and most MiB for each CPU, by kind of CPU."""

CPUS = (1, 2, 4, 6, 8, 10, 12, 14, 16)

PRESETS: dict[str, Guest] = {
    **{f"shared-cpu-{n}x": Guest(cpu_kind="shared", cpus=n, memory_mb=n * 256) for n in (1, 2, 4, 6, 8)},
    **{
        f"performance-{n}x": Guest(cpu_kind="performance", cpus=n, memory_mb=n * 2048)
        for n in (1, 2, 4, 6, 8, 10, 12, 14, 16)
    },
    # The sizes with a GPU, of which there is none here.
    **{
        name: Guest(cpu_kind="performance", cpus=8, memory_mb=16 * 2048)
        for name in ("a100-40gb", "a100-80gb", "l40s", "a10")
    },
}
GPU_SIZES = frozenset({"a100-40gb", "a100-80gb", "l40s", "a10"})
