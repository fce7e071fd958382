"""A deterministic token count.

The real tokenizer is not public. A block counts as the bytes of its canonical JSON (keys sorted, UTF-8)
divided by four and rounded up, without its `cache_control`, which is no part of the prompt, and without a
thinking block's `signature`.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

JsonObject = Mapping[str, object]
"""A decoded JSON object."""

BYTES_PER_TOKEN: Final = 4
_canonical: Final = msgspec.json.Encoder(order="deterministic")
_NOT_PROMPT: Final = frozenset({"cache_control"})
_NOT_COUNTED: Final = frozenset({"cache_control", "signature"})


def canonical(value: object) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    return _canonical.encode(value)


def without(block: JsonObject, names: frozenset[str] = _NOT_PROMPT) -> JsonObject:
    """Give `block` without the keys in `names`."""
    if names.isdisjoint(block):
        return block
    return {key: value for key, value in block.items() if key not in names}


def block_tokens(block: JsonObject) -> int:
    """Tokens of one tool definition or content block; at least 1."""
    return -(-len(canonical(without(block, _NOT_COUNTED))) // BYTES_PER_TOKEN)


def text_tokens(text: str) -> int:
    """Tokens of generated text; at least 1."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN))


def digest(*parts: bytes) -> bytes:
    """16 bytes that change when any part changes or moves."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()
