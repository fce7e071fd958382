"""`python -m fly_emulator.flyctl`."""

from __future__ import annotations

from fly_emulator.flyctl.main import main

main()
