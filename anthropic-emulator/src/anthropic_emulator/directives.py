"""What a request can ask of the emulator: `x-emulator-script`, `x-emulator-fault`, and `[[emulator: ...]]`.

Grammar (see the design page):

    directive := "[[emulator:" pair* "]]"
    pair      := key "=" value
    value     := JSON string, object or array | characters up to white space or "]]"
    fault     := name (";" key ("=" value)?)*
"""

import json
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from anthropic_emulator.errors import invalid

OPEN: Final = "[[emulator:"
CLOSE: Final = "]]"
_KEY: Final = re.compile(r"\s*([a-z_]+)=")
_BARE: Final = re.compile(r"(?:(?!\]\])\S)*")
_json: Final = json.JSONDecoder()
MAX_DELTAS: Final = 1_000_000

STOPS: Final = frozenset(
    {"end_turn", "tool_use", "max_tokens", "pause_turn", "refusal", "stop_sequence"}
    | {"model_context_window_exceeded"}
)


class FaultSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A fault's name and its parameters as text."""

    name: str
    params: Mapping[str, str] = {}


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a directive fixes; every absent field is left to the brain and the server's settings."""

    id: str = ""
    """Counts `fault_times`; equal directives share one counter unless they name different ids."""
    tokens: int | None = None
    stamp: bool = False
    """With `tokens`: each delta is the time it is written at, monotonic, in nanoseconds (`stream.STAMP`)."""
    text: str | None = None
    thinking: int | None = None
    """Thinking deltas; 0 for none."""
    tool: str | None = None
    args: dict[str, object] | None = None
    rounds: int = 1
    """In how many model calls of the turn `tool` is called before the text."""
    stop: str | None = None
    ttft_ms: float | None = None
    delay_ms: float | None = None
    gate: str | None = None
    """The answer waits until this gate is opened (`POST /_emulator/gates/NAME`)."""
    gate_after: int = 0
    """Deltas that are sent before the gate."""
    fault: str | None = None
    fault_times: int | None = None
    """The first so many matching calls fail; absent: every call."""
    fault_step: int | None = None
    """Only this model call of the turn fails (1 is the first)."""


def parse_fault(text: str) -> FaultSpec:
    """Read `name;key=value;flag`."""
    name, *rest = (part.strip() for part in text.split(";"))
    params: dict[str, str] = {}
    for part in filter(None, rest):
        key, _, value = part.partition("=")
        params[key.strip()] = value.strip() or "1"
    return FaultSpec(name=name, params=params)


def parse_script(raw: object) -> Script:
    """Build a script from decoded JSON; text numbers count as numbers. Raises 400 on unknown parts."""
    try:
        script = msgspec.convert(raw, Script, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(f"emulator directive: {error}") from error
    if script.stop is not None and script.stop not in STOPS:
        raise invalid(f"emulator directive: stop must be one of {', '.join(sorted(STOPS))}")
    if max(script.tokens or 0, script.thinking or 0) > MAX_DELTAS:
        raise invalid(f"emulator directive: at most {MAX_DELTAS} deltas")
    if script.gate_after < 0:
        raise invalid("emulator directive: gate_after must not be below 0")
    return script


def in_text(text: str) -> Script | None:
    """Give the last directive inside a user's text, or None. Raises 400 when it is malformed.

    The last: questions that were never answered stand before the present one in the same message.
    """
    start = text.rfind(OPEN)
    if start < 0:
        return None
    pairs: dict[str, object] = {}
    position = start + len(OPEN)
    while not text.startswith(CLOSE, position := _skip_space(text, position)):
        key = _KEY.match(text, position)
        if key is None:
            raise invalid("emulator directive: expected key=value or ]]")
        value, position = _value(text, key.end())
        pairs[key[1]] = value
    if not pairs.get("id"):
        pairs["id"] = text[start:position]
    return parse_script(pairs)


def strip(text: str) -> str:
    """Give `text` without its directives."""
    while (start := text.find(OPEN)) >= 0:
        end = text.find(CLOSE, start)
        text = text[:start] + (text[end + len(CLOSE) :] if end >= 0 else "")
    return text


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _value(text: str, position: int) -> tuple[object, int]:
    if text[position : position + 1] in ("{", "[", '"'):
        try:
            return _json.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise invalid(f"emulator directive: {error}") from error
    bare = _BARE.match(text, position)
    assert bare is not None
    return bare[0], bare.end()
