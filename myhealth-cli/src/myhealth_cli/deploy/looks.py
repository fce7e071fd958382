"""Looks at Fly, repeated within a bound: that its API is away for a moment is no fault of a release."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from myhealth_cli.deploy import state
from myhealth_cli.deploy.errors import FlyctlError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from myhealth_cli.deploy.flyctl import Flyctl

T = TypeVar("T")

PAUSES_S: Final = (1.0, 2.0, 4.0)
"""Between the tries, each of which has a bound of its own."""


async def again(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer. Raises FlyctlError: what the last try met."""
    for pause in PAUSES_S:
        try:
            return await ask()
        except FlyctlError:
            await asyncio.sleep(pause)
    return await ask()


async def machines(fly: Flyctl, app: str) -> tuple[state.Machine, ...]:
    """Return an app's machines, as `state.machines`."""
    return await again(lambda: state.machines(fly, app))
