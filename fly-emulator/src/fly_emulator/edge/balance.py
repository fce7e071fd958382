"""Which machine gets a request: pure, so that its laws can be tested.

Sources: superfly/docs reference/load-balancing (soft and hard limits, closeness, chance between equals),
networking/dynamic-request-routing (instance and region preferences),
reference/fly-proxy-autostop-autostart (when a machine is started).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from fly_emulator.edge.options import WakeOrder

Status: TypeAlias = Literal["ready", "waking", "unready", "asleep", "leaving"]
"""`ready`: started and healthy. `waking`: on its way up. `unready`: started, its checks do not pass.
`asleep`: stopped or suspended. `leaving`: on its way there."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that offers the service, oldest first in a sequence of them."""

    id: str
    region: str
    status: Status
    load: int = 0
    soft: int = 20
    hard: int | None = None
    autostart: bool = True
    draining: bool = False
    """Soft-cordoned: used only where nothing else is."""
    distance: int = 0
    """From the edge; smaller is closer."""

    @property
    def has_room(self) -> bool:
        """Whether new traffic may go to it: "at or above" the hard limit none does."""
        return self.hard is None or self.load < self.hard

    @property
    def below_soft(self) -> bool:
        """Whether it is not deprioritised: "at or above" the soft limit it is."""
        return self.load < self.soft


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What a request, or a replay, asks for."""

    force: str | None = None
    prefer: str | None = None
    regions: tuple[str, ...] = ()
    """In order of preference; `any` stands for all others. Empty: the closest."""
    force_region: bool = False
    exclude: frozenset[str] = frozenset()
    """`elsewhere=true`: not these."""
    avoid: frozenset[str] = frozenset()
    """Tried before in vain; used when nothing else is left."""


class Forward(msgspec.Struct, frozen=True):
    """Send it there; `start`: and wake this one, because all that run are at their soft limit."""

    machine: str
    start: str | None = None


class Wake(msgspec.Struct, frozen=True):
    """Start this one, or wait for it if it is on its way, and decide again."""

    machine: str


class Wait(msgspec.Struct, frozen=True):
    """Decide again when something has changed."""

    reason: Literal["full", "unready", "leaving"]


class Refuse(msgspec.Struct, frozen=True):
    """No machine can ever take it."""

    code: Literal["PR02", "PR04"]


Decision: TypeAlias = Forward | Wake | Wait | Refuse
Pick: TypeAlias = Callable[[Sequence[Candidate]], Candidate]
"""Chooses one of several equals."""

ALIASES: Final[dict[str, frozenset[str]]] = {
    "apac": frozenset({"nrt", "sin", "syd", "hkg", "bom", "maa"}),
    "eu": frozenset({"ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"}),
    "na": frozenset(
        {"bos", "dfw", "den", "ewr", "iad", "lax", "mia", "ord", "sea", "sjc", "yul", "yyz", "qro"}
    ),
    "sa": frozenset({"gru", "gig", "scl", "bog", "eze"}),
    "us": frozenset({"bos", "dfw", "den", "ewr", "iad", "lax", "mia", "ord", "sea", "sjc", "atl", "phx"}),
}
"""Geographic aliases of a region list. Fly documents the areas, not their members: these are the regions'."""


def decide(candidates: Sequence[Candidate], want: Want, pick: Pick, order: WakeOrder) -> Decision:
    """Choose what is done with one request now."""
    pool = _wanted(candidates, want)
    if not pool:
        return Refuse("PR02" if want.force is not None else "PR04")
    ready = [one for one in pool if one.status == "ready"]
    chosen = _choose([one for one in ready if one.has_room], want, pick)
    if chosen is None:
        return _without_room(pool, want, pick, order)
    return Forward(chosen.id, _another(pool, ready, pick, order))


def _wanted(candidates: Sequence[Candidate], want: Want) -> list[Candidate]:
    """Leave those that may be used at all, at the distance the request sees them."""
    if want.force is not None:
        return [one for one in candidates if one.id == want.force]
    pool = [one for one in candidates if one.id not in want.exclude]
    if not want.regions:
        return pool
    ranked: list[Candidate] = []
    for one in pool:
        rank = next((at for at, name in enumerate(want.regions) if _matches(one.region, name)), None)
        if rank is None and want.force_region:
            continue
        far = len(want.regions) if rank is None else rank
        ranked.append(msgspec.structs.replace(one, distance=far * 1000 + one.distance))
    return ranked


def _matches(region: str, name: str) -> bool:
    return name in {region, "any"} or region in ALIASES.get("us" if name == "usa" else name, frozenset())


def _choose(open_ones: Sequence[Candidate], want: Want, pick: Pick) -> Candidate | None:
    """Take the preferred one, else the least loaded of the closest region, below the soft limit if any is."""
    preferred = [one for one in open_ones if one.id == want.prefer and one.id not in want.avoid]
    if preferred:
        return preferred[0]
    settled = [one for one in open_ones if not one.draining]
    fresh = [one for one in settled if one.id not in want.avoid]
    pool = fresh or settled or open_ones
    if not pool:
        return None
    nearest = _nearest(pool)
    relaxed = [one for one in nearest if one.below_soft] or nearest
    least = min(one.load for one in relaxed)
    return pick([one for one in relaxed if one.load == least])


def _without_room(pool: Sequence[Candidate], want: Want, pick: Pick, order: WakeOrder) -> Decision:
    """No machine can take it now: wake one, or wait."""
    waking = [one for one in pool if one.status == "waking"]
    if waking:
        return Wake(_nearest(waking)[0].id)
    asleep = [one for one in pool if one.status == "asleep" and one.autostart]
    if asleep:
        preferred = [one for one in asleep if one.id == want.prefer]
        fresh = [one for one in asleep if one.id not in want.avoid]
        return Wake(_sleeper(preferred or fresh or asleep, pick, order).id)
    if any(one.status == "ready" for one in pool):
        return Wait("full")
    if any(one.status == "unready" for one in pool):
        return Wait("unready")
    if any(one.status == "leaving" and one.autostart for one in pool):
        return Wait("leaving")
    return Refuse("PR04")


def _another(
    pool: Sequence[Candidate], ready: Sequence[Candidate], pick: Pick, order: WakeOrder
) -> str | None:
    """Return whom to start beside those that run: only if all of them are at their soft limit."""
    settled = [one for one in ready if not one.draining] or ready
    if any(one.below_soft for one in settled):
        return None
    if any(one.status == "waking" for one in pool):
        return None
    asleep = [one for one in pool if one.status == "asleep" and one.autostart]
    return _sleeper(asleep, pick, order).id if asleep else None


def _sleeper(asleep: Sequence[Candidate], pick: Pick, order: WakeOrder) -> Candidate:
    nearest = _nearest(asleep)
    if order == "random":
        return pick(nearest)
    return nearest[0] if order == "oldest" else nearest[-1]


def _nearest(pool: Sequence[Candidate]) -> list[Candidate]:
    closest = min(one.distance for one in pool)
    return [one for one in pool if one.distance == closest]
