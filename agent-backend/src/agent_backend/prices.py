"""What models cost and what they can, from `prices.json`: the one dated file, with its sources.

A US dollar per million tokens is a millionth of a dollar per token, so that tokens times the listed
price are micro-dollars. A model that is not in the file cannot be used: a price is never guessed.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from pathlib import Path
from typing import Literal

import msgspec


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices in US dollars per million tokens, for prompts of at most `prompt_up_to` tokens."""

    prompt_up_to: int | None = None
    input: Decimal
    output: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    cache_read: Decimal


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model: its largest answer, what to send as `thinking`, and its prices by prompt length."""

    max_output_tokens: int
    thinking: dict[Literal["on", "off"], dict[str, str] | None]
    """The API's `thinking` parameter for each of our two modes; None where the model refuses the mode."""
    tiers: list[Tier]

    def cost_usd_micros(
        self, *, uncached: int, cache_read: int, cache_write_5m: int, cache_write_1h: int, output: int
    ) -> int:
        """Return the price of one call in millionths of a US dollar, rounded up; arguments are tokens.

        The whole call is billed by the tier its prompt falls in, and cached tokens count as prompt
        (platform.claude.com/docs/en/models/haiku-5-5/overview, "Pricing").
        """
        tier = self._tier(uncached + cache_read + cache_write_5m + cache_write_1h)
        return math.ceil(
            uncached * tier.input
            + cache_read * tier.cache_read
            + cache_write_5m * tier.cache_write_5m
            + cache_write_1h * tier.cache_write_1h
            + output * tier.output
        )

    def dearest(self, prompt_tokens: int) -> tuple[Decimal, Decimal]:
        """Return the most a token of a prompt this long, and one of its answer, may cost: micro-dollars."""
        tier = self._tier(prompt_tokens)
        return max(tier.input, tier.cache_write_5m, tier.cache_write_1h), tier.output

    def _tier(self, prompt_tokens: int) -> Tier:
        fitting = (t for t in self.tiers if t.prompt_up_to is None or prompt_tokens <= t.prompt_up_to)
        return next(fitting)


class PriceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. `as_of` is the day (ISO 8601) on which the sources were last compared with it."""

    as_of: str
    currency: Literal["USD per million tokens"]
    sources: list[str]
    models: dict[str, Model]


@functools.cache
def price_file() -> PriceFile:
    """Read the file that ships with the package."""
    return msgspec.json.decode(Path(__file__).with_name("prices.json").read_bytes(), type=PriceFile)


def micros(usd: Decimal) -> int:
    """Return an amount in micro-dollars."""
    return round(usd * 1_000_000)


def models() -> dict[str, Model]:
    """Return the models that may be used, by id."""
    return price_file().models
