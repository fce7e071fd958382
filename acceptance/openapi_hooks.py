"""What schemathesis cannot know: streams that never end are asked for the present, and some ids exist.

It is loaded by the schemathesis command (SCHEMATHESIS_HOOKS); EXISTING names a session of the user.
"""

from __future__ import annotations

import os
import re
from typing import Any

import schemathesis
from schemathesis.specs.openapi import stateful

_EXISTING = os.environ["EXISTING"]
_VALID = {
    "PUT /v1/sessions/{session_id}": {"agent": "coach"},
    "PUT /v1/sessions/{session_id}/turns/{turn_id}": {"content": "[[emulator: tokens=1]]"},
}


def _begins(operation: Any, *_: Any) -> bool:
    return operation.label in _VALID


# Left to itself, schemathesis takes POSTs for what makes things: here PUTs under the client's ids do.
stateful.is_likely_root_transition = _begins


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let every other request reach something that is there, and no request wait for ever."""
    if case.path == "/v1/sessions/{session_id}/events":
        given = dict(case.query or {})
        if re.fullmatch(r"[+-]?\d+", str(given.get("wait", 1))):
            case.query = {**given, "wait": 0}
    if _stateful(case):
        # What is made up at random is mostly refused, and what comes next would have nothing to come to.
        case.body = _VALID.get(case.operation.label, case.body)
        return
    parameters = case.path_parameters or {}
    if "session_id" in parameters and sum(map(ord, str(parameters["session_id"]))) % 2:
        case.path_parameters = {**parameters, "session_id": _EXISTING}


def _stateful(case: Any) -> bool:
    return case.meta is not None and case.meta.phase.name.value == "stateful"


@schemathesis.check
def made_is_there(ctx: Any, response: Any, case: Any) -> None:
    """Fail when what a PUT has made is missing for the request that a link leads to.

    schemathesis' own `ensure_resource_availability` looks at POST alone.
    """
    parent = ctx.internals.find_parent(case_id=case.id)
    if response.status_code != 404 or parent is None or parent.operation.method.upper() != "PUT":
        return
    before = ctx.internals.find_response(case_id=parent.id)
    made = parent.path_parameters or {}
    asked = case.path_parameters or {}
    same = bool(asked) and all(made.get(name) == value for name, value in asked.items())
    if before is not None and before.status_code < 300 and same:
        raise AssertionError(f"{parent.operation.label} {made}: made, and {case.operation.label} is a 404")
