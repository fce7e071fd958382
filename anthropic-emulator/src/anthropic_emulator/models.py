"""The models the emulator knows: their rules and their prices.

From the pages "Claude Sonnet 5.5", "Claude Opus 5.5", "Claude Haiku 5.5" (overview, what's new, migration
guide) and "Troubleshooting thinking" of platform.claude.com; prices as of 2026-11, which the backend's own
price file states too.
"""

from typing import Final

import msgspec

PRICES_AS_OF: Final = "2026-11"


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens (so: micro-dollars per token) of each kind of token."""

    input: float
    output: float
    write_5m: float
    write_1h: float
    read: float


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its limits in tokens, the `thinking.type`s it accepts, its prices."""

    id: str
    display_name: str
    created_at: str
    thinking_types: frozenset[str]
    price: Price
    long_price: Price | None = None
    """Price of prompts longer than `LONG_PROMPT`, where it differs."""
    context: int = 1_000_000
    max_output: int = 128_000

    def price_of(self, prompt_tokens: int) -> Price:
        """Give the price of a whole call by the length of its prompt, cached tokens included."""
        return self.long_price if self.long_price and prompt_tokens > LONG_PROMPT else self.price


LONG_PROMPT: Final = 100_000
DEFAULT_THINKING: Final = "adaptive"
"""All three models think unless told otherwise."""

_SONNET: Final = Model(
    id="claude-sonnet-5-5",
    display_name="Claude Sonnet 5.5",
    created_at="2026-09-28T00:00:00Z",
    thinking_types=frozenset({"adaptive", "between_tools"}),
    price=Price(input=2.0, output=10.0, write_5m=2.5, write_1h=4.0, read=0.1),
)
_OPUS: Final = Model(
    id="claude-opus-5-5",
    display_name="Claude Opus 5.5",
    created_at="2026-09-22T00:00:00Z",
    thinking_types=frozenset({"adaptive"}),
    price=Price(input=4.0, output=20.0, write_5m=5.0, write_1h=8.0, read=0.2),
)
_HAIKU: Final = Model(
    id="claude-haiku-5-5",
    display_name="Claude Haiku 5.5",
    created_at="2026-10-07T00:00:00Z",
    thinking_types=frozenset({"adaptive", "disabled"}),
    price=Price(input=0.1, output=0.5, write_5m=0.125, write_1h=0.2, read=0.01),
    long_price=Price(input=0.5, output=2.5, write_5m=0.625, write_1h=1.0, read=0.05),
)

MODELS: Final[dict[str, Model]] = {model.id: model for model in (_SONNET, _OPUS, _HAIKU)}
