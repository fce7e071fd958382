"""Bad networks on purpose: a share of the client connections breaks after some bytes."""

from __future__ import annotations

from random import Random

import msgspec

from fly_emulator.edge.splice import Wire


class FaultPlan(msgspec.Struct, frozen=True):
    """Which connections break, and after how many bytes at most; the seed makes it repeat."""

    probability: float
    max_bytes: int
    seed: int


class Faults:
    """Off until `cut` is called; open connections are left alone."""

    def __init__(self) -> None:
        self.plan: FaultPlan | None = None
        self.cuts = 0
        """Clients broken so far."""
        self._random = Random()  # noqa: S311 - faults, not secrets

    def cut(self, probability: float, max_bytes: int, seed: int) -> FaultPlan:
        """Break new client connections with this probability after 1 to `max_bytes` bytes to the client."""
        if not 0 <= probability <= 1 or max_bytes < 1:
            raise ValueError("a probability is from 0 to 1, and at least one byte passes")
        self.plan = FaultPlan(probability, max_bytes, seed)
        self._random = Random(seed)  # noqa: S311 - faults, not secrets
        return self.plan

    def off(self) -> None:
        """Leave new connections alone."""
        self.plan = None

    def meet(self, client: Wire) -> None:
        """Decide a new connection's fate."""
        if self.plan is not None and self._random.random() < self.plan.probability:
            client.cut_after = self._random.randint(1, self.plan.max_bytes)
            client.on_cut = self._count

    def _count(self) -> None:
        self.cuts += 1
