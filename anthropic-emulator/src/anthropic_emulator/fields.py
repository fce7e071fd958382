"""Checks of single JSON fields, with the messages the API answers.

Paths are dotted, indexes are numbers: `messages.0.content.1.text`. The texts are those of the API's
validator (pydantic), as quoted in public issue threads.
"""

from collections.abc import Collection

from anthropic_emulator.errors import invalid
from anthropic_emulator.tokens import JsonObject


def at(path: str, name: object) -> str:
    """Path of a field below `path` (empty: the body itself)."""
    return f"{path}.{name}" if path else str(name)


def obj(value: object, path: str) -> JsonObject:
    """Give `value` as an object or raise 400."""
    if not isinstance(value, dict):
        raise invalid(f"{path}: Input should be a valid dictionary")
    return value


def array(value: object, path: str) -> list[object]:
    """Give `value` as a list or raise 400."""
    if not isinstance(value, list):
        raise invalid(f"{path}: Input should be a valid list")
    return value


def string(value: object, path: str) -> str:
    """Give `value` as a string or raise 400."""
    if not isinstance(value, str):
        raise invalid(f"{path}: Input should be a valid string")
    return value


def boolean(value: object, path: str) -> bool:
    """Give `value` as a boolean or raise 400."""
    if not isinstance(value, bool):
        raise invalid(f"{path}: Input should be a valid boolean")
    return value


def integer(value: object, path: str, minimum: int) -> int:
    """Give `value` as an integer of at least `minimum` or raise 400."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(f"{path}: Input should be a valid integer")
    if value < minimum:
        raise invalid(f"{path}: Input should be greater than or equal to {minimum}")
    return value


def number(value: object, path: str, low: float, high: float) -> float:
    """Give `value` as a number within `low`..`high` or raise 400."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid(f"{path}: Input should be a valid number")
    if value < low:
        raise invalid(f"{path}: Input should be greater than or equal to {low:g}")
    if value > high:
        raise invalid(f"{path}: Input should be less than or equal to {high:g}")
    return float(value)


def required(source: JsonObject, name: str, path: str = "") -> object:
    """Give field `name` or raise 400."""
    if name not in source:
        raise invalid(f"{at(path, name)}: Field required")
    return source[name]


def choice(value: object, allowed: Collection[str], path: str) -> str:
    """Give `value` if it is one of `allowed` or raise 400."""
    if not isinstance(value, str) or value not in allowed:
        names = [f"'{name}'" for name in sorted(allowed)]
        listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        raise invalid(f"{path}: Input should be {listed}")
    return value


def only(source: JsonObject, allowed: Collection[str], path: str = "") -> None:
    """Raise 400 when `source` has a field that is not `allowed`."""
    for name in source:
        if name not in allowed:
            raise invalid(f"{at(path, name)}: Extra inputs are not permitted")
