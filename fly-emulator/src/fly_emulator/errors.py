"""What goes wrong, in structured fields; each operator error says what to do."""

from __future__ import annotations


class EmulatorError(Exception):
    """The operator has to change something. `hint` says what."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
