"""What goes wrong, in structured fields; each operator error says what to do."""

from __future__ import annotations


class EmulatorError(Exception):
    """The operator has to change something. `hint` says what."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class StateError(EmulatorError):
    """A machine's state does not allow what was asked. `status` is what the Machines API answers."""

    def __init__(self, problem: str, *, status: int = 412, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.status = status


class LaunchError(StateError):
    """The machine's command could not be run at all; the machine is `failed`."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem, status=500, hint=hint)
