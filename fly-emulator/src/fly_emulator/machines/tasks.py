"""Work that is carried to its end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


def uncancelled(operation: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Carry an operation to its end when its caller is cancelled (a client that has gone away).

    Half a start would leave the machine in `starting` for ever.
    """

    @functools.wraps(operation)
    async def call(*args: P.args, **kwargs: P.kwargs) -> None:
        task = asyncio.ensure_future(operation(*args, **kwargs))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    return call
