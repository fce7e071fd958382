"""The states of a turn and its legal transitions; pure.

The database holds the same table (`myhealth.turn_may_go`) and refuses every other step, whatever the
code believes; a test compares the two.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

TurnState: TypeAlias = Literal[
    "queued", "running", "waiting_device", "waiting_approval", "completed", "failed", "cancelled"
]
FinalState: TypeAlias = Literal["completed", "failed", "cancelled"]
CallStatus: TypeAlias = Literal["ok", "empty_or_denied", "locked", "unavailable", "declined", "timeout"]
"""How a call that waited for somebody outside ended; `timeout` is said by us alone."""
OnBusy: TypeAlias = Literal["enqueue", "reject", "interrupt"]

TRANSITIONS: Final[dict[TurnState, frozenset[TurnState]]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"waiting_device", "waiting_approval", "completed", "failed", "cancelled"}),
    # A parked turn holds no lease; its result, its expiry or a new message puts it back into the queue.
    "waiting_device": frozenset({"queued", "cancelled", "failed"}),
    "waiting_approval": frozenset({"queued", "cancelled", "failed"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

FINAL: Final[frozenset[TurnState]] = frozenset({"completed", "failed", "cancelled"})


def may_go(source: TurnState, target: TurnState) -> bool:
    """Say whether a turn may go from one state to another."""
    return target in TRANSITIONS[source]
