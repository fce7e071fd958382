"""What calls cost, by the file that ships."""

from __future__ import annotations

import datetime as dt

import pytest

from agent_backend.prices import models, price_file

MILLION = 1_000_000


def cost(model: str, **tokens: int) -> int:
    none = {"uncached": 0, "cache_read": 0, "cache_write_5m": 0, "cache_write_1h": 0, "output": 0}
    return models()[model].cost_usd_micros(**(none | tokens))


@pytest.mark.parametrize(
    ("kind", "usd"),
    [
        ("uncached", 2.0),
        ("output", 10.0),
        ("cache_write_5m", 2.5),
        ("cache_write_1h", 4.0),
        ("cache_read", 0.1),
    ],
)
def test_sonnet(kind: str, usd: float) -> None:
    assert cost("claude-sonnet-5-5", **{kind: MILLION}) == usd * MILLION


def test_kinds_add_up() -> None:
    assert cost("claude-opus-5-5", uncached=10, cache_read=1000, output=7) == 40 + 200 + 140


def test_a_fraction_of_a_micro_dollar_counts_as_one() -> None:
    assert cost("claude-sonnet-5-5", cache_read=1) == 1
    assert cost("claude-sonnet-5-5") == 0


def test_haiku_is_dearer_beyond_100k_of_prompt_whatever_its_parts() -> None:
    assert cost("claude-haiku-5-5", uncached=60_000, cache_read=40_000, output=1000) == 6000 + 400 + 500
    assert cost("claude-haiku-5-5", uncached=60_000, cache_read=40_001, output=1000) == 30_000 + 2001 + 2500


def test_the_file_is_dated_and_names_its_sources() -> None:
    file = price_file()
    assert dt.date.fromisoformat(file.as_of).year >= 2026
    assert all(source.startswith("https://") for source in file.sources)


def test_every_model_has_a_last_tier_and_both_modes_named() -> None:
    for model in models().values():
        assert [tier.prompt_up_to is None for tier in model.tiers] == [False] * (len(model.tiers) - 1) + [
            True
        ]
        assert model.thinking.keys() == {"on", "off"}
        assert model.thinking["on"] is not None
