"""What schemathesis cannot know: streams that never end are asked for the present, and some ids exist.

It is loaded by the schemathesis command (SCHEMATHESIS_HOOKS); EXISTING names a session of the user, ERASED
holds the Authorization header of another one, who is erased instead.
"""

from __future__ import annotations

import os
import re
from typing import Any

import schemathesis

_EXISTING = os.environ["EXISTING"]
_ERASED = os.environ["ERASED"]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let every other request reach something that is there, and no request wait for ever."""
    if case.path == "/v1/sessions/{session_id}/events":
        given = dict(case.query or {})
        if re.fullmatch(r"[+-]?\d+", str(given.get("wait", 1))):
            case.query = {**given, "wait": 0}
    if (case.method, case.path) == ("DELETE", "/v1/me"):
        for headers in (case.headers, kwargs.get("headers")):
            if headers is not None and str(headers.get("Authorization", "")).startswith("Bearer ey"):
                headers["Authorization"] = _ERASED
    parameters = case.path_parameters or {}
    if "session_id" in parameters and sum(map(ord, str(parameters["session_id"]))) % 2:
        case.path_parameters = {**parameters, "session_id": _EXISTING}
