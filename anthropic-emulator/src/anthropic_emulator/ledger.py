"""Remembers what was asked and what it would have cost."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from anthropic_emulator.cache import InputUsage
from anthropic_emulator.models import PRICES_AS_OF, Model, Price

_SECRET_HEADERS: Final = frozenset({"x-api-key", "authorization", "cookie"})
_MAX_KEPT_BYTES: Final = 64 * 1024 * 1024


class Record(msgspec.Struct, kw_only=True):
    """One request to the API. `outcome`: open, complete, error, fault, or gone (the client left)."""

    id: str
    time: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int = 0
    outcome: str = "open"
    fault: str | None = None
    error: str | None = None
    stop_reason: str | None = None
    usage: Mapping[str, object] | None = None
    obeyed: Sequence[str] = ()
    """What a gullible model did because a text told it to."""
    billed_usd_micro: float = 0.0
    """What it has cost so far, in millionths of a US dollar."""

    def public(self) -> dict[str, object]:
        """As `GET /_emulator/requests` shows it: the body as JSON where it is any."""
        shown = msgspec.structs.asdict(self)
        try:
            shown["body"] = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            shown["body"] = self.body.decode(errors="replace")
        return shown


class ModelStats(msgspec.Struct, kw_only=True):
    """Sums over one model; the cost in millionths of a US dollar."""

    calls: int = 0
    input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd_micro: float = 0.0


class Bill:
    """One answer's bill, as a provider writes it: the prompt when the answer begins, the rest as it grows.

    Nobody has to be there to read it. What was written for a client that left is billed all the same.
    """

    def __init__(self, stats: ModelStats, record: Record, price: Price) -> None:
        self._stats = stats
        self._record = record
        self._price = price
        self._written = 0

    def prompt(self, paid: InputUsage) -> None:
        """Bill the prompt."""
        stats, price = self._stats, self._price
        stats.calls += 1
        stats.input_tokens += paid.uncached
        stats.cache_creation_5m_input_tokens += paid.write_5m
        stats.cache_creation_1h_input_tokens += paid.write_1h
        stats.cache_read_input_tokens += paid.read
        self._add(
            paid.uncached * price.input
            + paid.write_5m * price.write_5m
            + paid.write_1h * price.write_1h
            + paid.read * price.read
        )

    def written(self, tokens: int) -> None:
        """Bill the answer up to so many tokens; never less than before."""
        more = tokens - self._written
        if more > 0:
            self._written = tokens
            self._stats.output_tokens += more
            self._add(more * self._price.output)

    def _add(self, micro: float) -> None:
        self._stats.cost_usd_micro += micro
        self._record.billed_usd_micro += micro


class Ledger:
    """The last requests, and sums over all of them."""

    def __init__(self, keep: int) -> None:
        self._records: deque[Record] = deque(maxlen=keep)
        self._bytes = 0
        self.requests = 0
        self.errors = 0
        self.models: dict[str, ModelStats] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._bytes = self.requests = self.errors = 0
        self.models.clear()

    def open(self, record: Record) -> Record:
        """Add a request; the oldest give way by number and by size."""
        self.requests += 1
        if len(self._records) == self._records.maxlen:
            self._bytes -= len(self._records[0].body)
        self._records.append(record)
        self._bytes += len(record.body)
        while self._bytes > _MAX_KEPT_BYTES and len(self._records) > 1:
            self._bytes -= len(self._records.popleft().body)
        return record

    def bill(self, record: Record, model: Model, paid: InputUsage) -> Bill:
        """Begin an answer's bill with its prompt."""
        bill = Bill(self.models.setdefault(model.id, ModelStats()), record, model.price_of(paid.total))
        bill.prompt(paid)
        return bill

    def latest(self, limit: int) -> list[dict[str, object]]:
        """Give the last `limit` requests, oldest first."""
        kept = list(self._records)
        return [record.public() for record in kept[max(0, len(kept) - limit) :]]

    def stats(self) -> dict[str, object]:
        """Give the sums as JSON."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "prices_as_of": PRICES_AS_OF,
            "models": self.models,
            "cost_usd_micro": sum(stats.cost_usd_micro for stats in self.models.values()),
        }


def public_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers in lower case, without keys and tokens."""
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _SECRET_HEADERS}
