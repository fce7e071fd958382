"""A machine's states, the moves between them, and what the API answers to an operation in each.

Pure: no clock, no process. Sources: superfly/docs `machines/machine-states`, `reference/suspend-resume`,
`monitoring/error-codes` (PM08); the texts of refusals are those that users of the API quote
("failed_precondition: unable to start machine from current state: 'created'").
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from fly_emulator.errors import StateError
from fly_emulator.ports import State

Operation: TypeAlias = Literal["start", "stop", "suspend", "restart", "update", "destroy", "signal", "exec"]

PERSISTENT: Final[frozenset[State]] = frozenset({"created", "started", "stopped", "suspended", "failed"})
TERMINAL: Final[frozenset[State]] = frozenset({"destroyed", "replaced", "migrated"})
RUNNING: Final[frozenset[State]] = frozenset({"starting", "started", "restarting"})
"""A process runs or is about to."""
WAITABLE: Final[frozenset[State]] = frozenset({"started", "stopped", "suspended", "destroyed", "failed"})
"""What `wait` takes (superfly/docs machines-resource: the first four; flyctl also waits for `failed`)."""

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    "creating": frozenset({"created", "launch_failed"}),
    "created": frozenset({"starting", "stopped", "replacing", "destroying"}),
    "starting": frozenset({"started", "failed", "stopping", "destroying"}),
    "started": frozenset({"stopping", "stopped", "suspending", "restarting", "replacing", "destroying"}),
    "stopping": frozenset({"stopped", "destroying"}),
    "stopped": frozenset({"starting", "replacing", "destroying"}),
    "restarting": frozenset({"starting", "stopping", "stopped", "failed", "replacing", "destroying"}),
    "suspending": frozenset({"suspended", "started", "stopping", "stopped", "destroying"}),
    "suspended": frozenset({"starting", "stopping", "stopped", "replacing", "destroying"}),
    "failed": frozenset({"starting", "stopping", "replacing", "destroying"}),
    "updating": frozenset({"starting", "stopped", "created", "failed", "destroying"}),
    "replacing": frozenset({"starting", "stopped", "created", "failed", "destroying"}),
    "launch_failed": frozenset({"destroying"}),
    "destroying": frozenset({"destroyed"}),
    "destroyed": frozenset(),
    "replaced": frozenset(),
    "migrated": frozenset(),
}

_ALLOWED: Final[dict[Operation, frozenset[State]]] = {
    "start": frozenset({"created", "stopped", "suspended", "failed"}),
    "stop": frozenset({"starting", "started", "restarting", "suspended", "failed"}),
    "suspend": frozenset({"started"}),
    "restart": frozenset({"started"}),
    "update": frozenset({"created", "starting", "started", "restarting", "stopped", "suspended", "failed"}),
    "destroy": frozenset({"created", "stopped", "suspended", "failed", "launch_failed"}),
    "signal": frozenset({"starting", "started"}),
    "exec": frozenset({"started"}),
}
_SETTLED: Final[dict[Operation, frozenset[State]]] = {
    "start": frozenset({"starting", "started", "restarting"}),
    "stop": frozenset({"created", "stopping", "stopped"}),
    "suspend": frozenset({"suspending", "suspended"}),
    "restart": frozenset({"restarting"}),
    "destroy": frozenset({"destroying", "destroyed"}),
}
"""Asking again for what is so, or on its way, is no error."""


def check_move(current: State, target: State) -> None:
    """Refuse a move that Fly's machines never make. Raises StateError; it would be our own fault."""
    if target not in TRANSITIONS[current]:
        raise StateError(f"a machine never goes from {current} to {target}", status=500)


def admit(operation: Operation, state: State, *, force: bool = False) -> bool:
    """Say whether there is something to do. Raises StateError (412) where the state forbids it.

    `force` is the API's flag of that name: destroy what runs.
    """
    if state in _ALLOWED[operation]:
        return True
    if state in _SETTLED.get(operation, frozenset()):
        return False
    if operation == "destroy" and force and state not in TERMINAL:
        return True
    raise StateError(refusal(operation, state))


def refusal(operation: Operation, state: State) -> str:
    """Return the API's words for an operation that the state forbids."""
    if operation == "destroy":
        reason = "unable to destroy machine, not currently stopped, suspended, failed or created"
    elif operation == "start" and state in ("replacing", "updating"):
        reason = "machine getting replaced, refusing to start"
    else:
        reason = f"unable to {operation} machine from current state: '{state}'"
    return f"failed_precondition: {reason}"
