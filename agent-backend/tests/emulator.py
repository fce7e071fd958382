"""The anthropic-emulator as a process of its own, for tests that need a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def emulator(*options: str) -> Generator[str]:
    """Run an emulator that answers at once unless a directive says otherwise; yields its URL."""
    defaults = ["--port", "0", "--ttft-ms", "0", "--delta-delay-ms", "0"]
    command = [sys.executable, "-m", "anthropic_emulator", "serve", *defaults, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait(timeout=10)
