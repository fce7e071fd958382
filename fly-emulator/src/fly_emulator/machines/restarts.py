"""Whether a machine whose process ended by itself is started again. Pure; times are the caller's seconds.

Source: superfly/docs `machines/guides-examples/machine-restart-policy`.
"""

from __future__ import annotations

from collections import deque

from fly_emulator.machine_config import Restart


class Restarts:
    """Counts the restarts of the last `window` seconds."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._times: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._times)

    def note(self, now: float) -> None:
        """Count one."""
        self._times.append(now)

    def clear(self) -> None:
        """Begin anew: somebody started, restarted or updated the machine."""
        self._times.clear()

    def refusal(self, policy: Restart, returncode: int, now: float) -> str | None:
        """Say why it is not started again, in Fly's words; None when it is."""
        if policy.policy == "always":
            return None
        if policy.policy == "no" or returncode == 0:
            code = 128 - returncode if returncode < 0 else returncode
            return f"machine exited with exit code {code}, not restarting"
        while self._times and self._times[0] <= now - self._window:
            self._times.popleft()
        if len(self._times) >= policy.max_retries:
            return f"machine has reached its max restart count of {policy.max_retries}"
        return None
