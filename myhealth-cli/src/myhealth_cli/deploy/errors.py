"""What goes wrong in a deploy, by what it leaves behind: nothing, or something that did not hold."""

from __future__ import annotations

from myhealth_cli.errors import MyHealthError


class NothingChangedError(MyHealthError):
    """Something is missing or refused before anything was changed; exit code 2."""


class GateError(MyHealthError):
    """A gate of a deploy did not open; what it guards must not serve. Raised by steps, handled by rollout."""


class LockLostError(MyHealthError):
    """Somebody else holds the app's lock now; whoever had it before leaves the app alone."""


class FlyctlError(MyHealthError):
    """flyctl ended with an error; `str` is its own last words, without colours."""
