"""What a check of `myhealth doctor` can find: four honest states, and the words for them."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["ok", "failed", "by hand", "unknown"]
STATES: Final[tuple[State, ...]] = ("ok", "failed", "by hand", "unknown")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One item. `hint` is the next step: what failed is mended, or what is unknown is looked at, by it."""

    id: str
    section: str
    title: str
    state: State
    detail: str = ""
    hint: str = ""


class Found(msgspec.Struct, frozen=True):
    """What a check returns; its item is known by then."""

    state: State
    detail: str = ""
    hint: str = ""


def ok(detail: str = "") -> Found:
    """Say that it is as it should be."""
    return Found("ok", detail)


def failed(detail: str, hint: str = "") -> Found:
    """Say that it is not."""
    return Found("failed", detail, hint)


def by_hand(hint: str) -> Found:
    """Say that only a person can."""
    return Found("by hand", "", hint)


def unknown(because: str, hint: str) -> Found:
    """Say that it could not be looked at, why, and what would let it be."""
    return Found("unknown", because, hint)
