"""Texts that people, devices or other apps wrote, on their way to the model: shown as they look, and short.

Characters that nobody sees (controls, direction marks, zero-width ones, the tag block that spells ASCII
invisibly) can carry words to a model that the person who looks at the screen never reads. They are left out.
"""

from __future__ import annotations

import unicodedata

TITLE_LENGTH = 80

_JOINERS = "\u200c\u200d"
"""They join the parts of emoji and of letters in some scripts; without them such names fall apart."""
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def shown(text: str, length: int) -> str:
    """Return the text without what cannot be seen, on one line, cut to `length` characters."""
    if not text.isascii() or not text.isprintable():
        kept = (" " if each in "\t\n\r\u2028\u2029" else each for each in text)
        text = "".join(each for each in kept if each in _JOINERS or unicodedata.category(each) not in _UNSEEN)
    return text if len(text) <= length else text[: length - 1] + "…"
