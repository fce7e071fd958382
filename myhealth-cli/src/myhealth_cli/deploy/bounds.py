"""How long steps may take: a lock that is to guard them must outlast them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.deploy import build, plan, removal

if TYPE_CHECKING:
    from myhealth_cli.deploy.plan import Step
    from myhealth_cli.deploy.probe import Patiences

DEPLOY_S: Final = 900.0


class Bound(msgspec.Struct, frozen=True):
    """Seconds at most, in all and for each machine of the app besides."""

    seconds: float = 0.0
    of_each: float = 0.0


def of(step: Step, patiences: Patiences) -> Bound | None:  # noqa: PLR0911 - one for each kind of step
    """Return the bound of a step and of the short ones that follow it; None: it is short itself."""
    match step:
        case plan.BuildImage():
            return Bound(build.BUILD_S)
        case plan.DeployImage():
            return Bound(DEPLOY_S)
        case plan.RemoveMachines():
            return Bound(removal.REMOVE_S * (len(step.ids) + len(step.serve)))
        case plan.WakeMachines():
            # Each is asked next, for /readyz and for /version; then the canary asks.
            return Bound(patiences.answer_s, 2 * patiences.ready_s)
        case plan.Bake():
            return Bound(step.seconds + patiences.answer_s, patiences.ready_s)
        case plan.NoteGood():
            return Bound()
        case _:
            return None
