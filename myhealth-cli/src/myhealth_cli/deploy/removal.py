"""Takes machines away, and puts those back into service that take their place."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy import looks
from myhealth_cli.deploy.errors import FlyctlError, GateError

if TYPE_CHECKING:
    from myhealth_cli.deploy.flyctl import Flyctl

REMOVE_S: Final = 120.0
"""One machine's bound, for either: its tries, and the time in which it drains."""
_TRIES: Final = 20
_PAUSE_S: Final = 1.0
"""Between tries. A flyctl that was killed holds its leases for 13 s more (`--lease-timeout`)."""
_FORCED: Final = 5
"""So many tries are left when it is not asked to drain any more: nobody can drain a host that is gone."""
_GENTLY_S: Final = 60.0
# flyctl's own default would be SIGINT.
_STOP: Final = ("stop", "--signal", "SIGTERM", "--timeout", "30", "--wait-timeout", "40s")
_DESTROY: Final = ("destroy", "--force")


async def remove(fly: Flyctl, app: str, machine: str) -> None:
    """Let nothing new reach a machine, let it drain, then destroy it. Raises GateError: it is still there."""
    why = "it took too long"
    with suppress(TimeoutError):
        async with asyncio.timeout(REMOVE_S):
            began = time.monotonic()
            for left in reversed(range(_TRIES)):
                gently = left >= _FORCED and time.monotonic() - began < _GENTLY_S
                try:
                    for verb in (("cordon",), _STOP, _DESTROY) if gently else (_DESTROY,):
                        await fly.run("machine", *verb, machine, "--app", app)
                except FlyctlError as error:
                    why = str(error)
                else:
                    return
                # Destroyed, and the answer was lost: what is gone can be cordoned by nobody.
                with suppress(FlyctlError):
                    if all(each.id != machine for each in await looks.machines(fly, app)):
                        return
                await asyncio.sleep(_PAUSE_S if left else 0)
    raise GateError(f"machine {machine} cannot be removed: {why}")


async def serve(fly: Flyctl, app: str, machine: str) -> None:
    """Let requests reach a machine again. Raises GateError: it cannot be."""
    why = "it took too long"
    with suppress(TimeoutError):
        async with asyncio.timeout(REMOVE_S):
            for left in reversed(range(_TRIES)):
                try:
                    await fly.run("machine", "uncordon", machine, "--app", app)
                except FlyctlError as error:
                    why = str(error)
                else:
                    return
                await asyncio.sleep(_PAUSE_S if left else 0)
    raise GateError(f"machine {machine} cannot be put back into service: {why}")
