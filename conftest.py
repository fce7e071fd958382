"""What holds for the tests of all parts."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine stops a process for longer than an example may take by default (200 ms); that is no fault of
# what is tested. All else stays as the environment has it: on CI, Hypothesis chooses its examples by itself.
settings.register_profile(
    "unhurried",
    settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("unhurried")
