"""The models the emulator knows: their rules and their prices.

Prices are US dollars per million tokens, as of 2026-11 (Anthropic's price page, by way of the project's
facts). Thinking rules: Vercel AI SDK release notes `@ai-sdk/anthropic` 4.0.67 for Sonnet 5.5.
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
    """One model: its limits in tokens, what it accepts as `thinking`, its price."""

    id: str
    display_name: str
    context: int
    max_output: int
    thinking_types: frozenset[str]
    default_thinking: str
    binds_thinking: bool
    """Whether thinking is bound to `system`, `tools` and the turns before it."""
    price: Price


_SONNET: Final = Model(
    id="claude-sonnet-5-5",
    display_name="Claude Sonnet 5.5",
    context=1_000_000,
    max_output=128_000,
    thinking_types=frozenset({"adaptive", "between_tools"}),
    default_thinking="adaptive",
    binds_thinking=True,
    price=Price(input=2.0, output=10.0, write_5m=2.5, write_1h=4.0, read=0.1),
)
_OPUS: Final = Model(
    id="claude-opus-5-5",
    display_name="Claude Opus 5.5",
    context=1_000_000,
    max_output=128_000,
    thinking_types=frozenset({"adaptive", "disabled"}),
    default_thinking="disabled",
    binds_thinking=False,
    price=Price(input=4.0, output=20.0, write_5m=5.0, write_1h=8.0, read=0.2),
)
_HAIKU: Final = Model(
    id="claude-haiku-5-5",
    display_name="Claude Haiku 5.5",
    context=200_000,
    max_output=64_000,
    thinking_types=frozenset({"adaptive", "enabled", "disabled"}),
    default_thinking="disabled",
    binds_thinking=False,
    price=Price(input=0.1, output=0.5, write_5m=0.125, write_1h=0.2, read=0.01),
)

MODELS: Final[dict[str, Model]] = {model.id: model for model in (_SONNET, _OPUS, _HAIKU)}
