"""Faults on demand: what they are, and which request gets which."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from anthropic_emulator.directives import FaultSpec, Script
from anthropic_emulator.errors import ApiError, invalid

_NUMBER_PARAMS: Final = frozenset({"after", "seconds", "delay_ms", "size", "retry_after", "seed"})
_STREAM: Final = frozenset({"overloaded", "stall", "reset", "truncated", "cut", "malformed", "slow", "split"})
_UNHEARD: Final = frozenset({"disconnect", "stall", "reset", "truncated", "cut"})
_BEFORE: Final = frozenset({"delay", "disconnect"})
_STATUS_TEXT: Final[Mapping[str, tuple[int, str]]] = {
    "400": (400, "emulated: invalid request"),
    "401": (401, "invalid x-api-key"),
    "402": (402, "Your credit balance is too low to access the Anthropic API."),
    "403": (403, "Your API key does not have permission to use the specified resource."),
    "404": (404, "emulated: not found"),
    "413": (413, "Request exceeds the maximum size"),
    "429": (429, "This request would exceed your organization's rate limit."),
    "spend_cap": (429, "You have reached your specified API usage limits."),
    "500": (500, "Internal server error"),
    "504": (504, "Request timed out"),
    "529": (529, "Overloaded"),
}
NAMES: Final = _STREAM | _BEFORE | _STATUS_TEXT.keys()
_DEFAULT_RETRY_AFTER: Final = 1.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault to commit. Which parameters matter depends on `name`.

    `after`: content deltas sent before it; `seconds`: length of a stall or delay (None: for ever).
    """

    name: str
    after: int = 1
    seconds: float | None = None
    delay_ms: float = 250.0
    size: int = 16
    seed: int = 1
    retry_after: float | None = None

    @property
    def in_stream(self) -> bool:
        """Whether it happens after a 200."""
        return self.name in _STREAM

    @property
    def unheard(self) -> bool:
        """Whether the answer is written to its end although nobody can hear it: it is billed whole."""
        return self.name in _UNHEARD

    def error(self) -> ApiError | None:
        """Give the error response this fault is, or None for the others."""
        if self.name not in _STATUS_TEXT:
            return None
        status, text = _STATUS_TEXT[self.name]
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["retry-after"] = f"{self.retry_after:g}"
        return ApiError(status, text, headers)


def build(spec: FaultSpec) -> Fault:
    """Check a fault's name and parameters; 400 when there is no such fault.

    429 and 529 carry `retry-after: 1` unless `retry_after=none` or another number is given; `spend_cap` has
    none, as the API's own spend-limit error.
    """
    if spec.name not in NAMES:
        raise invalid(f"emulator: no fault {spec.name!r}; there are {', '.join(sorted(NAMES))}")
    unknown = spec.params.keys() - _NUMBER_PARAMS
    if unknown:
        raise invalid(f"emulator: fault parameter {min(unknown)!r} is unknown")
    values: dict[str, object] = {key: value for key, value in spec.params.items() if value != "none"}
    if spec.name in {"429", "529"} and "retry_after" not in spec.params:
        values["retry_after"] = _DEFAULT_RETRY_AFTER
    try:
        return msgspec.convert({"name": spec.name, **values}, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(f"emulator: fault {spec.name}: {error}") from error


class FaultRule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /_emulator/faults`: the next `count` requests whose body contains `match` get the fault."""

    fault: str
    """`name` or `name;key=value;...`."""
    count: int = 1
    match: str = ""


class FaultBoard:
    """The armed rules and the counters of directives."""

    def __init__(self) -> None:
        self.rules: list[FaultRule] = []
        self._used: Counter[tuple[str, str]] = Counter()

    def clear(self) -> None:
        """Disarm everything and forget the counters."""
        self.rules.clear()
        self._used.clear()

    def from_rules(self, body: bytes) -> str | None:
        """Take the first armed rule that matches a request body; its count goes down."""
        for rule in self.rules:
            if rule.match.encode() in body:
                rule.count -= 1
                if rule.count <= 0:
                    self.rules.remove(rule)
                return rule.fault
        return None

    def from_script(self, script: Script, api_key: str, step: int) -> str | None:
        """Give the script's fault if it is due at this `step` (model call of the turn, from 1)."""
        if script.fault is None or script.fault_step not in (None, step):
            return None
        if script.fault_times is not None:
            key = (api_key, script.id)
            if self._used[key] >= script.fault_times:
                return None
            self._used[key] += 1
        return script.fault
