"""Signatures of thinking blocks, and the check of what stands before them.

Rules ("Preserved thinking", "Prefix checks on thinking blocks" of the API guide): a block must come back as
it was made; `system`, `tools` and all messages before it must be unchanged; no block between others may be
missing or moved. A block another model made is dropped without an error.

A signature is made of HMACs with a published development key, so it is the same after a restart.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from anthropic_emulator.tokens import JsonObject, canonical, digest, without

DEV_KEY: Final = b"anthropic-emulator development key: not a secret"
_SIZE: Final = 16
THINKING_TYPES: Final = frozenset({"thinking", "redacted_thinking"})

Verdict = Literal["ok", "foreign", "invalid", "moved"]
"""`foreign`: made by another model. `invalid`: changed. `moved`: something before it changed."""


def conversation_digest(
    system: Sequence[JsonObject], tools: Sequence[JsonObject], turns: Sequence[JsonObject] = ()
) -> bytes:
    """Digest of everything before a thinking block; `turns` have lists of blocks as content.

    `cache_control` is left out: moving a breakpoint does not edit the conversation. Thinking blocks are left
    out too: leaving out all of them is allowed, and the chain of signatures notices a gap.
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


def last_signature(turns: Sequence[JsonObject]) -> str:
    """Signature of the last thinking block in `turns`; empty when there is none."""
    for turn in reversed(turns):
        content = turn["content"]
        assert isinstance(content, list)
        for block in reversed(content):
            if block.get("type") == "thinking":
                return str(block["signature"])
    return ""


def _mac(*parts: bytes) -> bytes:
    return hmac.new(DEV_KEY, digest(*parts), hashlib.sha256).digest()[:_SIZE]


def sign(model: str, thinking: str, conversation: bytes, before: str) -> str:
    """Sign `thinking` of `model`: after that conversation, and after the block with signature `before`."""
    text = _mac(b"text", model.encode(), thinking.encode())
    place = _mac(b"place", conversation)
    return base64.b64encode(text + place + _mac(b"link", before.encode())).decode()


def verify(
    model: str, others: Iterable[str], thinking: str, signature: str, conversation: bytes, before: str
) -> Verdict:
    """Check a block that came back to `model`; `others` are the models whose blocks it drops.

    `before` is the signature of the thinking block before it, empty when that was left out or never was.
    """
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return "invalid"
    text, place, link = raw[:_SIZE], raw[_SIZE : 2 * _SIZE], raw[2 * _SIZE :]
    if not hmac.compare_digest(text, _mac(b"text", model.encode(), thinking.encode())):
        made = (_mac(b"text", other.encode(), thinking.encode()) for other in others)
        return "foreign" if any(hmac.compare_digest(text, mac) for mac in made) else "invalid"
    if not hmac.compare_digest(place, _mac(b"place", conversation)):
        return "moved"
    if before and not hmac.compare_digest(link, _mac(b"link", before.encode())):
        return "moved"
    return "ok"
