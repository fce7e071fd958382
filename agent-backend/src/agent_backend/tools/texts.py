"""Texts that people, devices or other apps wrote, on their way to the model: as they look on a screen.

Characters that nobody sees (controls, direction marks, zero-width ones, the block of tags that spells ASCII
invisibly, private use) can carry words to a model that the person at the screen never reads. They are left
out.
"""

from __future__ import annotations

import re

TITLE_LENGTH = 80

# Kept: tab, line feed, the joiners that emoji and some scripts need, and the two selectors of emoji style.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0d\ufeff\uffa0"
    "\ufff0-\uffff\U000e0000-\U0010ffff]"
)
_BREAKS = re.compile("[\t\n\r\u2028\u2029]+")


def visible(text: str) -> str:
    """Return the text without what cannot be seen; lines stay lines."""
    return _UNSEEN.sub("", text)


def shown(text: str, length: int) -> str:
    """Return the text without what cannot be seen, on one line, cut to `length` characters."""
    text = visible(_BREAKS.sub(" ", text))
    return text if len(text) <= length else text[: length - 1] + "…"
