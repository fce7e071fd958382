"""Patterns over words: what the data files are written in, compiled to something that runs in linear time.

    chest pain              these words, one after the other
    hurt|ache*              either word; `*` stands for any ending
    @chest                  any word of the set `chest`
    _   __                  up to 2, up to 5 other words here
    a b & c                 both, in either order, up to 7 words between them
    >=8 <700 1900-1999      a number
    $                       the clause ends here

A pattern never reaches over the end of a sentence. Words of six letters and more are also found with one
typing error (a letter too many, missing, wrong, or two exchanged), shorter ones with two exchanged letters;
the first letter has to be right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import permutations
from typing import NamedTuple

from agent_backend.safety.words import Words, fold

_GAPS = {"_": 2, "__": 5}
_AROUND = 7
"""Words between the parts of an `&`."""
_TYPO_LENGTH = 6
_SWAP_LENGTH = 4
_ENDINGS = ("", "e", "en", "n", "s", "er", "t", "ed", "ing")
"""What a stem is tried with when typing errors are looked for."""
_MAX_KNOWN = 20_000
_NUMBER = re.compile(r">=(?P<least>\d+)|<(?P<below>\d+)|(?P<low>\d+)-(?P<high>\d+)")
_ANY = 10**40
_DOUBLE = re.compile(r"(.)\1")
_CLAUSE_END = -1


class Span(NamedTuple):
    """Words `start` to before `end` match the pattern whose label this is."""

    start: int
    end: int
    label: int


class _Item(NamedTuple):
    """One place of a pattern: words with this id, after at most `gap` others."""

    id: int
    gap: int


class Matcher:
    """A set of labelled patterns, looked for together.

    `sets` names sets of words; `ordinary` are words that are never taken for a mistyped other one, None:
    typing errors are not looked for.
    """

    def __init__(
        self,
        patterns: Iterable[tuple[str, int]],
        sets: Mapping[str, str],
        ordinary: Iterable[str] | None = None,
    ) -> None:
        self._sets = {name: words.split() for name, words in sets.items()}
        self._ids: dict[str, int] = {}
        self._exact: dict[str, set[int]] = defaultdict(set)
        self._stems: dict[str, set[int]] = defaultdict(set)
        self._numbers: list[tuple[int, int, int]] = []
        self._starts: dict[int, list[tuple[tuple[_Item, ...], int]]] = defaultdict(list)
        for pattern, label in patterns:
            for order in _orders(pattern):
                items = tuple(self._items(order))
                self._starts[items[0].id].append((items, label))
        self._lengths = sorted({len(stem) for stem in self._stems})
        self._ordinary = frozenset(_fold(word) for word in ordinary or ())
        self._single = {} if ordinary is None else self._single_letters()
        self._typos = {} if ordinary is None else self._mistyped()
        self._known: dict[str, frozenset[int]] = {}

    # --- compiling ---

    def _items(self, parts: list[str]) -> Iterator[_Item]:
        gap = 0
        for part in parts:
            if part.isdigit():
                gap = int(part)
            elif part == "$":
                yield _Item(_CLAUSE_END, 0)
            else:
                yield _Item(self._id(part), gap)
                gap = 0

    def _id(self, part: str) -> int:
        known = self._ids.get(part)
        if known is None:
            known = self._ids[part] = len(self._ids)
            for alternative in self._alternatives(part):
                self._note(alternative, known)
        return known

    def _alternatives(self, part: str) -> Iterator[str]:
        for alternative in part.split("|"):
            if alternative.startswith("@"):
                yield from self._sets[alternative[1:]]
            else:
                yield alternative

    def _note(self, word: str, id_: int) -> None:
        number = _NUMBER.fullmatch(word)
        if number is not None:
            low, high = number["least"] or number["low"] or 0, number["high"] or _ANY
            below = int(number["below"] or _ANY)
            self._numbers.append((int(low), min(int(high), below - 1), id_))
        elif word.endswith("*"):
            self._stems[_fold(word[:-1])].add(id_)
        else:
            self._exact[_fold(word)].add(id_)

    def _single_letters(self) -> dict[str, str]:
        """Index words without their doubled letters: "selbsttötung" is often written with one t."""
        return {_DOUBLE.sub(r"\1", word): word for word in self._exact if len(word) > _SWAP_LENGTH}

    def _mistyped(self) -> dict[str, str | tuple[str, ...]]:
        """Index words by what remains of them when one letter is left out."""
        stems = [stem + ending for stem in self._stems if len(stem) > _SWAP_LENGTH for ending in _ENDINGS]
        index: dict[str, str | tuple[str, ...]] = {}
        for word in dict.fromkeys([*self._exact, *stems]):
            if len(word) >= _SWAP_LENGTH and word.isalpha():
                for shorter in {word, *_shortened(word)}:
                    # Nearly all stand alone, and a list each would be most of the index.
                    known = index.get(shorter)
                    index[shorter] = word if known is None else (*_several(known), word)
        return index

    # --- looking ---

    def ids(self, word: str) -> frozenset[int]:
        """Return the ids of the places a word can stand in."""
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[word] = frozenset(self._look_up(word))
        return known

    def _look_up(self, word: str) -> set[int]:
        if word.isdecimal():
            value = int(word)
            found = {id_ for low, high, id_ in self._numbers if low <= value <= high}
            return found | self._exact.get(word, set())
        if "*" in word:
            return set().union(*(self._as_written(word.replace("*", vowel)) for vowel in "aeiou"))
        found = self._as_written(word)
        if not found and word not in self._ordinary and len(word) >= _SWAP_LENGTH:
            meant = self._single.get(_DOUBLE.sub(r"\1", word))
            found = self._as_mistyped(word) if meant is None else self._as_written(meant)
        return found

    def _as_written(self, word: str) -> set[int]:
        found = set(self._exact.get(word, ()))
        for length in self._lengths:
            if length > len(word):
                break
            found |= self._stems.get(word[:length], set())
        return found

    def _as_mistyped(self, word: str) -> set[int]:
        found: set[int] = set()
        for shorter in (word, *_shortened(word)):
            for meant in _several(self._typos.get(shorter, ())):
                if meant[0] == word[0] and _near(word, meant):
                    found |= self._as_written(meant)
        return found

    def spans(self, words: Words) -> list[Span]:
        """Return every place where a pattern matches, in the order of their starts."""
        ids = [self.ids(word) for word in words.word]
        limits = _limits(words)
        found: list[Span] = []
        for start, own in enumerate(ids):
            for id_ in own:
                for items, label in self._starts.get(id_, ()):
                    end = _match(items, start, ids, limits[start], words)
                    if end:
                        found.append(Span(start, end, label))
        return found


_fold = cache(fold)


def _match(items: tuple[_Item, ...], start: int, ids: list[frozenset[int]], limit: int, words: Words) -> int:
    """Return where a match from `start` ends, 0 if there is none before `limit`; takes bounded time."""
    reached = [start]
    for id_, gap in items[1:]:
        if id_ == _CLAUSE_END:
            reached = [k for k in reached if k + 1 == len(ids) or words.clause[k + 1] != words.clause[k]]
        elif gap == 0:
            reached = [k + 1 for k in reached if k + 1 < limit and id_ in ids[k + 1]]
        else:
            reached = _within(id_, gap, reached, ids, limit)
        if not reached:
            return 0
    return reached[0] + 1


def _within(id_: int, gap: int, reached: list[int], ids: list[frozenset[int]], limit: int) -> list[int]:
    """Return the places of an item after at most `gap` words from a place reached; each is looked at once."""
    found: list[int] = []
    seen = 0
    for before in reached:
        end = min(before + 2 + gap, limit)
        found += [k for k in range(max(before + 1, seen), end) if id_ in ids[k]]
        seen = end
    return found


def _limits(words: Words) -> list[int]:
    """Return for each word where its sentence ends."""
    limits = [0] * len(words.word)
    end = len(limits)
    for k in range(end - 1, -1, -1):
        if k + 1 < len(limits) and words.sentence[k] != words.sentence[k + 1]:
            end = k + 1
        limits[k] = end
    return limits


def _orders(pattern: str) -> Iterator[list[str]]:
    """Yield a pattern's words with gaps as numbers, once for each order of its `&` parts."""
    parts = [[str(_GAPS.get(word, word)) for word in part.split()] for part in pattern.split(" & ")]
    for order in permutations(parts):
        joined = list(order[0])
        for part in order[1:]:
            joined += [str(_AROUND), *part]
        yield joined


def _several(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words


def _shortened(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i in range(len(word))]


def _near(a: str, b: str) -> bool:
    """Say whether one typing error makes `b` of `a`: for short words only two letters exchanged."""
    if len(a) == len(b):
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if len(differ) == 2 and differ[1] == differ[0] + 1:
            i, j = differ
            return a[i] == b[j] and a[j] == b[i]
        return len(differ) <= 1 and len(b) >= _TYPO_LENGTH
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return len(b) >= _TYPO_LENGTH and len(longer) == len(shorter) + 1 and shorter in _shortened(longer)
