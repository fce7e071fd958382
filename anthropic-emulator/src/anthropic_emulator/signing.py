"""Signatures of thinking blocks.

A signature is an HMAC with a published development key, so it is the same after a restart. It covers the
thinking text and the model; where a model binds thinking to its conversation it also covers `system`,
`tools` and all earlier turns (thinking blocks themselves excepted: leaving one out is allowed).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final, Literal

from anthropic_emulator.tokens import JsonObject, canonical, digest, without

DEV_KEY: Final = b"anthropic-emulator development key: not a secret"
_MAGIC: Final = b"emu1"
_HALF: Final = 16
THINKING_TYPES: Final = frozenset({"thinking", "redacted_thinking"})


def conversation_digest(
    system: Sequence[JsonObject], tools: Sequence[JsonObject], turns: Sequence[JsonObject] = ()
) -> bytes:
    """Digest of everything before a thinking block; `turns` have lists of blocks as content.

    `cache_control` is left out: moving a breakpoint does not edit the conversation.
    """
    chain = digest(*(canonical([without(block) for block in part]) for part in (system, tools)))
    for turn in turns:
        chain = extend_digest(chain, turn)
    return chain


def extend_digest(chain: bytes, turn: JsonObject) -> bytes:
    """Digest of a conversation one turn longer."""
    content = turn["content"]
    assert isinstance(content, list)
    kept = [without(block) for block in content if block.get("type") not in THINKING_TYPES]
    return digest(chain, str(turn["role"]).encode(), canonical(kept))


def _mac(*parts: bytes) -> bytes:
    return hmac.new(DEV_KEY, digest(*parts), hashlib.sha256).digest()[:_HALF]


def sign(model: str, thinking: str, conversation: bytes) -> str:
    """Signature, base64, of `thinking` by `model` after a conversation with that digest."""
    text = _mac(b"text", model.encode(), thinking.encode())
    place = _mac(b"place", conversation)
    return base64.b64encode(_MAGIC + text + place).decode()


def verify(
    model: str, thinking: str, signature: str, conversation: bytes
) -> Literal["ok", "invalid", "moved"]:
    """Whether the signature fits: `invalid` if the text does not, `moved` if the conversation does not."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return "invalid"
    expected = base64.b64decode(sign(model, thinking, conversation))
    if not hmac.compare_digest(raw[: len(_MAGIC) + _HALF], expected[: len(_MAGIC) + _HALF]):
        return "invalid"
    return "ok" if hmac.compare_digest(raw, expected) else "moved"
