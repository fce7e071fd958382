"""Prompt-cache accounting.

Rules ("Prompt caching" of the API guide): the prompt is tools, then system, then messages. Each breakpoint
(`cache_control` on a block, or the top-level field, which marks the last cacheable block) asks for the
prefix up to and including its block. A hit is looked for at the breakpoint and at most at the 19 blocks
before it (20 in all). What no hit covers is written at the breakpoint. A prefix below the minimum size is
neither read nor written. Entries live 5 minutes or 1 hour from their last use, and belong to one API key
(in reality: one workspace) and one model. A change of `tool_choice` or of `thinking` misses message entries.
"""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from anthropic_emulator.fields import obj
from anthropic_emulator.request import MessagesRequest, blocks
from anthropic_emulator.signing import THINKING_TYPES
from anthropic_emulator.tokens import JsonObject, block_tokens, canonical, digest, without

LOOKBACK: Final = 20
MIN_TOKENS: Final = 1024
TTL_5M: Final = 300.0
TTL_1H: Final = 3600.0
_SWEEP_EVERY: Final = 1024


class InputUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens of one prompt are billed."""

    uncached: int
    write_5m: int = 0
    write_1h: int = 0
    read: int = 0

    @property
    def total(self) -> int:
        """Tokens of the whole prompt."""
        return self.uncached + self.write_5m + self.write_1h + self.read


class _Position(msgspec.Struct, frozen=True):
    """One block of the prompt: the digest of the prefix it ends, the tokens of that prefix, its mark."""

    prefix: bytes
    tokens: int
    ttl: float | None


class _Entry(msgspec.Struct):
    ttl: float
    expires: float


class PromptCache:
    """The entries of all keys; `clock` gives seconds and may be advanced by tests."""

    def __init__(self, clock: Callable[[], float], minimum: int = MIN_TOKENS) -> None:
        self._clock = clock
        self._minimum = minimum
        self._entries: dict[bytes, _Entry] = {}
        self._calls = 0

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def account(self, api_key: str, request: MessagesRequest) -> InputUsage:
        """Bill a prompt and remember what its breakpoints write."""
        now = self._clock()
        self._sweep(now)
        prompt = list(_positions(api_key, request))
        total = prompt[-1].tokens
        marks = [n for n, position in enumerate(prompt) if position.ttl is not None]
        marks = [n for n in marks if prompt[n].tokens >= self._minimum]
        if not marks:
            return InputUsage(uncached=total)
        hit = self._longest_hit(prompt, marks, now)
        read = prompt[hit].tokens if hit >= 0 else 0
        written = {TTL_5M: 0, TTL_1H: 0}
        covered = read
        for n in marks:
            self._keep(prompt[n], now)
            ttl = prompt[n].ttl
            if prompt[n].tokens > covered and ttl is not None:
                written[ttl] += prompt[n].tokens - covered
                covered = prompt[n].tokens
        return InputUsage(
            uncached=total - covered, write_5m=written[TTL_5M], write_1h=written[TTL_1H], read=read
        )

    def _longest_hit(self, prompt: list[_Position], marks: list[int], now: float) -> int:
        """Index of the last block of the longest live prefix in reach of a breakpoint, or -1."""
        for mark in reversed(marks):
            for n in range(mark, max(-1, mark - LOOKBACK), -1):
                entry = self._entries.get(prompt[n].prefix)
                if entry is not None and entry.expires > now:
                    entry.expires = now + entry.ttl
                    return n
        return -1

    def _keep(self, position: _Position, now: float) -> None:
        ttl = position.ttl or TTL_5M
        known = self._entries.get(position.prefix)
        if known is not None and known.expires > now:
            ttl = max(ttl, known.ttl)
        self._entries[position.prefix] = _Entry(ttl, now + ttl)

    def _sweep(self, now: float) -> None:
        self._calls += 1
        if self._calls % _SWEEP_EVERY == 0:
            self._entries = {key: entry for key, entry in self._entries.items() if entry.expires > now}


def count(request: MessagesRequest) -> int:
    """Tokens of a prompt."""
    return sum(block_tokens(block) for _, _, block in _walk(request))


def _walk(request: MessagesRequest) -> Iterator[tuple[bool, bytes, JsonObject]]:
    """All blocks in prompt order: whether it belongs to the messages, its place, the block."""
    for tool in request.tools:
        yield False, b"tool", tool
    for block in request.system:
        yield False, b"system", block
    for turn in request.messages:
        role = str(turn["role"]).encode()
        for block in blocks(turn):
            yield True, role, block


def _ttl(control: object) -> float | None:
    if not control:
        return None
    return TTL_1H if obj(control, "cache_control").get("ttl") == "1h" else TTL_5M


def _positions(api_key: str, request: MessagesRequest) -> Iterator[_Position]:
    walked = list(_walk(request))
    last = max(
        (n for n, (_, _, block) in enumerate(walked) if block.get("type") not in THINKING_TYPES), default=-1
    )
    prefix = digest(api_key.encode(), request.model.id.encode())
    mode = (
        request.tool_choice.kind,
        request.tool_choice.name,
        request.tool_choice.parallel,
        request.thinking.kind,
    )
    tokens, in_messages = 0, False
    for n, (of_messages, place, block) in enumerate(walked):
        if of_messages and not in_messages:
            prefix = digest(prefix, canonical(mode))
            in_messages = True
        prefix = digest(prefix, place, canonical(without(block)))
        tokens += block_tokens(block)
        automatic = request.cache_control if n == last else None
        yield _Position(prefix, tokens, _ttl(block.get("cache_control") or automatic))
