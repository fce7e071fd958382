"""Text as words: one spelling for what people spell in many ways. Linear in the text's length.

"Ich hab BRUSTSCHMERZEN!!"   -> ich hab brustschmerzen
"möchte", "moechte"          -> mochte
"k1ll mys3lf", "s u i z i d" -> kill myself, suizid
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MAX_WORD = 40
"""Longer ones are no words; they are cut, so that looking one up takes bounded time."""
_SPELLED = 4
"""So many single letters in a row are a word that was spelled out."""

_INVISIBLE = dict.fromkeys(
    [
        0xAD,
        0x34F,
        0x61C,
        0x180E,
        0xFEFF,
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
        *range(0xE0000, 0xE0080),
    ]
)
_APOSTROPHES = dict.fromkeys(map(ord, "'\u2019\u02bc\u2018`\u00b4"))
_LETTERS = str.maketrans({"ß": "ss", "æ": "a", "œ": "o", "ø": "o", "ł": "l", "\u0131": "i"})
_DIGRAPHS = re.compile("([aou])e")
_RUNS = re.compile(r"([^\W\d_])\1{2,}")
_THOUSANDS = re.compile(r"(?<=\d)[.,'](?=\d{3}(?!\d))")
_TOKEN = re.compile(r"[^\W_]+(?:[@$*][^\W_]+)*|\.{2,}|[.!?\n\u2026;:,()\u2013\u2014]")
_LEET = str.maketrans("0134578@$", "oleastbas")
_LEET_I = str.maketrans("1", "i")
_SPELLING = re.compile(r"(?<![^\W_])([^\W\d_])[._-](?=[^\W\d_](?![^\W_]))")
"""A mark between two single letters."""
_PAUSES = frozenset(",:()\u2013\u2014\u2026")
"""These end a clause; the other marks end a sentence. An ellipsis is a pause."""


class Words(NamedTuple):
    """The words of a text; `clause[i]` and `sentence[i]` number what word i stands in."""

    word: list[str]
    clause: list[int]
    sentence: list[int]


def fold(text: str) -> str:
    """Return text in lower case, without diacritics, invisible characters and stretched letters."""
    if not text.isascii():
        length = len(text)
        # Single characters can become eighteen; nobody writes a message of such.
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))[: 2 * length]
    text = text.lower().translate(_APOSTROPHES)
    if not text.isascii():
        text = text.translate(_LETTERS)
        text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return _RUNS.sub(r"\1\1", _DIGRAPHS.sub(r"\1", text))


def split(text: str) -> Words:
    """Return the words of a text, folded."""
    words = Words([], [], [])
    clause = sentence = 0
    letters = 0
    for token in _TOKEN.findall(_SPELLING.sub(r"\1 ", _THOUSANDS.sub("", fold(text)))):
        if not token[0].isalnum():
            clause += 1
            sentence += token not in _PAUSES and not token.startswith("..")
            letters = _end_spelling(words, letters)
            continue
        letters = letters + 1 if len(token) == 1 and not token.isdigit() else _end_spelling(words, letters)
        words.word.append(_plain(token))
        words.clause.append(clause)
        words.sentence.append(sentence)
    _end_spelling(words, letters)
    return words


def _end_spelling(words: Words, letters: int) -> int:
    """Join the last `letters` words, which are single letters, if they spell a word."""
    if letters >= _SPELLED:
        joined = "".join(words.word[-letters:])[:MAX_WORD]
        for part in words:
            del part[len(part) - letters + 1 :]
        words.word[-1] = joined
    return 0


def _plain(token: str) -> str:
    token = token[:MAX_WORD]
    if token.isalpha() or token.isdigit():
        return token
    if token[0].isalpha():
        # An i more often than an l: k1ll, su1cide.
        return token.translate(_LEET_I).translate(_LEET)
    return token
