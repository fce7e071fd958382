"""What one server keeps in memory."""

from aiohttp import web

from anthropic_emulator.cache import PromptCache
from anthropic_emulator.clock import Clock
from anthropic_emulator.faults import FaultBoard
from anthropic_emulator.gates import Gates
from anthropic_emulator.ids import Ids
from anthropic_emulator.ledger import Ledger
from anthropic_emulator.limits import Limits
from anthropic_emulator.settings import Settings


class State:
    """All of it in one place, for the handlers."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.ids = Ids(settings.seed)
        self.cache = PromptCache(self.clock, settings.cache_min_tokens)
        self.faults = FaultBoard()
        self.gates = Gates()
        self.ledger = Ledger(settings.keep_requests)
        self.limits = Limits(settings, self.clock)
        self.open_streams = 0

    def reset(self) -> None:
        """Go back to the beginning: no entries, no faults, no open gates, no records, real time."""
        self.cache.clear()
        self.faults.clear()
        self.gates.clear()
        self.ledger.clear()
        self.limits.clear()
        self.clock.offset = 0.0
        self.ids = Ids(self.settings.seed)


STATE: web.AppKey[State] = web.AppKey("state", State)
