"""Words and patterns: one spelling for many, and time that grows with the text and not faster."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend import safety
from agent_backend.safety.patterns import Matcher
from agent_backend.safety.words import MAX_WORD, fold, split

LONG = 100_000
"""What a message may have (`web.turns.MAX_TEXT`)."""


@given(st.text(max_size=200))
def test_folding_again_changes_nothing_but_what_it_joined(text: str) -> None:
    words = split(text)
    assert len(words.word) == len(words.clause) == len(words.sentence)
    assert words.clause == sorted(words.clause)
    assert words.sentence == sorted(words.sentence)
    assert all(0 < len(word) <= MAX_WORD for word in words.word)


@given(st.text(alphabet="abcdefghklmnrstuwzäöüß ", max_size=60), st.integers(0, 60))
def test_case_and_invisible_characters_do_not_matter(text: str, place: int) -> None:
    assert split(text.upper().replace("SS", "ss")).word == split(text.replace("ß", "ss")).word
    assert split(text[:place] + "\u200b" + text[place:]).word == split(text).word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Möchte, moechte", ["mochte", "mochte"]),
        ("don't can\u2019t", ["dont", "cant"]),
        ("k1ll mys3lf", ["kill", "myself"]),
        ("s u i z i d!", ["suizid"]),
        ("s.u.i.z.i.d", ["suizid"]),
        ("1,200 kcal, 1.200 kcal", ["1200", "kcal", "1200", "kcal"]),
        ("neeeein", ["neein"]),
        ("z.B. um 7", ["z", "b", "um", "7"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split(text).word == words


def matches(pattern: str, text: str, ordinary: list[str] | None = None) -> bool:
    return bool(Matcher([(pattern, 0)], {"pet": "cat dog*"}, ordinary).spans(split(text)))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("big cat", "a big cat", True),
        ("big cat", "a big black cat", False),
        ("big _ cat", "a big old black cat", True),
        ("big _ cat", "big one two three cat", False),
        ("big __ cat", "big one two three cat", True),
        ("big cat", "so big. cat", False),
        ("big cat", "so big, cat", True),
        ("@pet", "doggy", True),
        ("big|small @pet", "small dogs", True),
        ("big & cat", "the cat is big", True),
        ("big & cat & hat", "a hat for the cat, it is big", True),
        (">=8 cats", "10 cats", True),
        (">=8 cats", "7 cats", False),
        ("<8 cats", "7 cats", True),
        ("<8 cats", "8 cats", False),
        ("7-9 cats", "9 cats", True),
        ("7-9 cats", "10 cats", False),
        ("cat $", "the cat, the dog", True),
        ("cat $", "the cat sat", False),
    ],
)
def test_patterns(pattern: str, text: str, *, expected: bool) -> None:
    assert matches(pattern, text) == expected


@pytest.mark.parametrize("typo", ["elehpant", "elephnt", "eelephant", "elephunt"])
def test_one_typing_error(typo: str) -> None:
    assert matches("elephant", typo, [])
    assert not matches("elephant", typo)
    assert not matches("elephant", typo, [typo])


def test_two_typing_errors_and_short_words_are_no_match() -> None:
    assert not matches("elephant", "elephnts", [])
    assert not matches("cats", "bats", [])
    assert matches("cats", "ctas", [])


def hostile() -> dict[str, str]:
    chance = random.Random(7)
    letters = "abcdefghiklmnoprstuw"
    return {
        "one word": "x" * LONG,
        "letters": "s u i " * (LONG // 6),
        "negators": "nicht " * (LONG // 6),
        "half a rule": "i want to not " * (LONG // 14),
        "negated": "no chest pain, " * (LONG // 15),
        "gaps": "left arm sudden " * (LONG // 16),
        "noise": " ".join("".join(chance.choices(letters, k=7)) for _ in range(LONG // 8)),
        "stars": "k*ll " * (LONG // 5),
        "accents": "a" + "\u0301" * (LONG - 1),
        "ligatures": "\ufdfa" * LONG,
        "dots": "a." * (LONG // 2),
        "invisible": "\u200b" * LONG,
    }


@pytest.mark.parametrize("name", sorted(hostile()))
def test_time_grows_with_the_text_and_not_faster(name: str) -> None:
    """Ten times the text may take thirty times as long (a shared machine); a square would take a hundred."""
    safety.warm()
    text = hostile()[name]
    tenth = _seconds(text[: LONG // 20])
    assert _seconds(text[: LONG // 2]) < max(30 * tenth, 0.2)


def test_a_message_as_long_as_it_may_be() -> None:
    safety.warm()
    assert _seconds(hostile()["noise"]) < 3


def _seconds(text: str) -> float:
    began = time.process_time()
    safety.check(text, "en")
    safety.check_answer(text, "en")
    return time.process_time() - began


def test_an_ordinary_message_takes_less_than_a_millisecond() -> None:
    safety.warm()
    text = "Wie habe ich letzte Woche geschlafen, und wie war mein Ruhepuls im Vergleich zum Vormonat? " * 2
    assert min(_seconds(text) for _ in range(20)) < 0.001


def test_nothing_is_read_before_it_is_needed() -> None:
    """The boot imports the package through `turns`; the detector comes with `warm`."""
    probe = (
        "import sys; from agent_backend import app; "
        "print([m for m in sys.modules if m.startswith('agent_backend.safety.')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folded_text_is_plain() -> None:
    assert fold("ÄÖÜ ß \u017f \ufb01 É") == "aou ss s fi e"
