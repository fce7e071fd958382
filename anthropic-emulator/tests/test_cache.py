"""Prompt-cache accounting, rule by rule, through the API."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from anthropic_emulator.cache import LOOKBACK, MIN_TOKENS
from anthropic_emulator.tokens import BYTES_PER_TOKEN

from .client import Emulator, ask

FIVE_MINUTES = {"type": "ephemeral"}
ONE_HOUR = {"type": "ephemeral", "ttl": "1h"}


class Paid(NamedTuple):
    """Input usage: not cached, written for 5 minutes and for 1 hour, read."""

    plain: int
    write_5m: int
    write_1h: int
    read: int


def text(tokens: int, label: str = "a", **fields: Any) -> dict[str, Any]:
    """Give a text block that counts exactly `tokens`."""
    overhead = len('{"text":"","type":"text"}')
    return {"type": "text", "text": (label * BYTES_PER_TOKEN * tokens)[: tokens * 4 - overhead], **fields}


async def pay(emulator: Emulator, body: dict[str, Any], key: str = "k") -> Paid:
    usage = (await emulator.post(body, x_api_key=key)).json["usage"]
    split = usage["cache_creation"]
    assert usage["cache_creation_input_tokens"] == sum(split.values())
    return Paid(
        usage["input_tokens"],
        split["ephemeral_5m_input_tokens"],
        split["ephemeral_1h_input_tokens"],
        usage["cache_read_input_tokens"],
    )


def chat(*user_blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**ask("x", **fields), "messages": [{"role": "user", "content": list(user_blocks)}]}


SYSTEM = [text(2000, "s", cache_control=FIVE_MINUTES)]
SYSTEM_1H = [text(2000, "s", cache_control=ONE_HOUR)]


async def test_without_breakpoints_nothing_is_cached(emulator: Emulator) -> None:
    body = chat(text(100), system=[text(2000)])
    assert await pay(emulator, body) == await pay(emulator, body) == Paid(2100, 0, 0, 0)


async def test_a_prefix_is_written_once_and_then_read(emulator: Emulator) -> None:
    assert await pay(emulator, chat(text(100), system=SYSTEM)) == Paid(100, 2000, 0, 0)
    assert await pay(emulator, chat(text(100), system=SYSTEM)) == Paid(100, 0, 0, 2000)
    assert await pay(emulator, chat(text(50, "b"), system=SYSTEM)) == Paid(50, 0, 0, 2000)


@pytest.mark.parametrize(("tokens", "cached"), [(MIN_TOKENS - 1, False), (MIN_TOKENS, True)])
async def test_a_prefix_below_the_minimum_is_not_cached(
    emulator: Emulator, tokens: int, *, cached: bool
) -> None:
    body = chat(text(100), system=[text(tokens, "s", cache_control=FIVE_MINUTES)])
    await pay(emulator, body)
    assert (await pay(emulator, body)).read == (tokens if cached else 0)


@pytest.mark.parametrize(("system", "lifetime"), [(SYSTEM, 300.0), (SYSTEM_1H, 3600.0)], ids=["5m", "1h"])
async def test_an_entry_lives_its_time_from_its_last_use(
    emulator: Emulator, system: list[dict[str, Any]], lifetime: float
) -> None:
    body = chat(text(100), system=system)
    written = await pay(emulator, body)
    assert written.write_5m + written.write_1h == 2000
    for _ in range(3):
        await emulator.advance(lifetime - 5)
        assert (await pay(emulator, body)).read == 2000
    await emulator.advance(lifetime + 5)
    assert await pay(emulator, body) == written


async def test_keys_and_models_do_not_share_entries(emulator: Emulator) -> None:
    body = chat(text(100), system=SYSTEM)
    await pay(emulator, body)
    assert (await pay(emulator, body, key="other")).read == 0
    other = {**body, "model": "claude-opus-5-5", "thinking": {"type": "adaptive"}}
    assert (await pay(emulator, other)).read == 0
    assert (await pay(emulator, body)).read == 2000


async def test_tools_come_before_system_and_system_before_messages(emulator: Emulator) -> None:
    tool = {"name": "t", "description": "d" * 6000, "input_schema": {"type": "object"}}
    marked = {**tool, "cache_control": FIVE_MINUTES}
    body = chat(text(100), tools=[marked], system=SYSTEM)
    first = await pay(emulator, body)
    tools = first.write_5m - 2000
    assert tools > MIN_TOKENS
    other_system = {**body, "system": [text(2000, "z", cache_control=FIVE_MINUTES)]}
    assert await pay(emulator, other_system) == Paid(100, 2000, 0, tools)
    other_tools = {**body, "tools": [{**marked, "name": "u"}]}
    assert (await pay(emulator, other_tools)).read == 0


async def test_one_hour_and_five_minute_parts_are_billed_apart(emulator: Emulator) -> None:
    body = chat(text(300, cache_control=FIVE_MINUTES), text(10), system=SYSTEM_1H)
    assert await pay(emulator, body) == Paid(10, 300, 2000, 0)
    assert await pay(emulator, body) == Paid(10, 0, 0, 2300)
    await emulator.advance(400)
    assert await pay(emulator, body) == Paid(10, 300, 0, 2000)


async def test_automatic_caching_marks_the_last_block_and_moves_on(emulator: Emulator) -> None:
    body = chat(text(2000), cache_control=FIVE_MINUTES)
    assert await pay(emulator, body) == Paid(0, 2000, 0, 0)
    body["messages"] += [
        {"role": "assistant", "content": [text(40, "b")]},
        {"role": "user", "content": [text(60, "c")]},
    ]
    assert await pay(emulator, body) == Paid(0, 100, 0, 2000)
    assert await pay(emulator, body) == Paid(0, 0, 0, 2100)


@pytest.mark.parametrize(("between", "hit"), [(LOOKBACK - 2, True), (LOOKBACK - 1, False)])
async def test_a_breakpoint_looks_back_over_twenty_blocks(
    emulator: Emulator, between: int, *, hit: bool
) -> None:
    await pay(emulator, chat(text(2000, cache_control=FIVE_MINUTES)))
    blocks = [text(20, "b") for _ in range(between)]
    paid = await pay(emulator, chat(text(2000), *blocks, text(20, "c", cache_control=FIVE_MINUTES)))
    assert paid.read == (2000 if hit else 0)


async def test_a_second_breakpoint_reaches_what_the_first_cannot(emulator: Emulator) -> None:
    await pay(emulator, chat(text(2000, cache_control=FIVE_MINUTES)))
    blocks = [text(20, "b") for _ in range(40)]
    body = chat(text(2000, cache_control=FIVE_MINUTES), *blocks, text(20, "c", cache_control=FIVE_MINUTES))
    assert await pay(emulator, body) == Paid(0, 820, 0, 2000)


async def test_entries_are_written_only_at_breakpoints(emulator: Emulator) -> None:
    await pay(emulator, chat(text(2000), text(100, "b", cache_control=FIVE_MINUTES)))
    paid = await pay(emulator, chat(text(2000, cache_control=FIVE_MINUTES), text(100, "c")))
    assert paid == Paid(100, 2000, 0, 0)


async def test_an_edit_inside_the_prefix_misses(emulator: Emulator) -> None:
    await pay(emulator, chat(text(1500), text(500, "b", cache_control=FIVE_MINUTES)))
    paid = await pay(emulator, chat(text(1500, "z"), text(500, "b", cache_control=FIVE_MINUTES)))
    assert paid == Paid(0, 2000, 0, 0)


async def test_tool_choice_and_thinking_change_the_messages_part_only(emulator: Emulator) -> None:
    tools = [{"name": "t", "input_schema": {"type": "object"}}]
    body = chat(text(1500, cache_control=FIVE_MINUTES), system=SYSTEM, tools=tools)
    whole = (await pay(emulator, body)).write_5m
    for change in ({"tool_choice": {"type": "none"}}, {"thinking": {"type": "adaptive"}}):
        paid = await pay(emulator, {**body, **change})
        assert (paid.read, paid.write_5m) == (whole - 1500, 1500)


async def test_a_request_for_no_tokens_warms_the_cache(emulator: Emulator) -> None:
    assert (await pay(emulator, chat(text(100), system=SYSTEM, max_tokens=0))).write_5m == 2000
    assert (await pay(emulator, chat(text(100), system=SYSTEM))).read == 2000


async def test_stats_add_up_tokens_and_cost(emulator: Emulator) -> None:
    sonnet = {"model": "claude-sonnet-5-5", "system": SYSTEM}
    for _ in range(2):
        await pay(emulator, chat(text(100, "hello "), **sonnet))
    stats = (await emulator.control("GET", "stats")).json
    sums = stats["models"]["claude-sonnet-5-5"]
    assert (sums["calls"], sums["input_tokens"]) == (2, 200)
    assert (sums["cache_creation_5m_input_tokens"], sums["cache_read_input_tokens"]) == (2000, 2000)
    expected = 200 * 2 + 2000 * 2.5 + 2000 * 0.1 + sums["output_tokens"] * 10
    assert sums["cost_usd_micro"] == pytest.approx(expected)
    assert stats["cost_usd_micro"] == pytest.approx(expected)


async def test_cache_reads_do_not_count_against_the_input_limit(emulator: Emulator) -> None:
    body = chat(text(100), system=SYSTEM)
    name = "anthropic-ratelimit-input-tokens-remaining"
    first, second = [int((await emulator.post(body)).headers[name]) for _ in range(2)]
    assert first - second == 100


async def test_long_prompts_of_haiku_cost_more(emulator: Emulator) -> None:
    await pay(emulator, chat(text(100_001)))
    sums = (await emulator.control("GET", "stats")).json["models"]["claude-haiku-5-5"]
    assert sums["cost_usd_micro"] == pytest.approx(100_001 * 0.5 + sums["output_tokens"] * 2.5)
