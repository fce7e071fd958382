"""German or English: which of the two a user writes."""

import re
from collections.abc import Iterable
from typing import Final, Literal

Language = Literal["de", "en"]

_WORD: Final = re.compile(r"[a-zäöüß]+")
_GERMAN_WORDS: Final = """
aber als am an auf bin bis bitte da danke das dass dein deine dem den der des die diese diesen
dieser dir du ein eine einen energie er es für gab geht geschlafen gestern gewicht ging guten hab
habe hallo hast hat heute hin ich im in ist ja kalorien kann kannst letzte letzten letzter machen
mein meine meinem meinen meiner mich mir mit monat morgen nach nacht nicht noch oder puls ruhepuls
schlaf schlafe schritte seit sich sind so tag tage tagen trainiert training trend um und verbrannt
verlauf viel viele vom von war waren warum was welche wer wie wieviel wieviele wird wo woche wochen
workouts wurde zeig zeige zu zum über
"""
_ENGLISH_WORDS: Final = """
a about am an and are at been better calories can compare days did do does energy few for from get
give good has have heart hello hey hi how i in is it last many me month much my night of on or over
past please rate resting run show since sleep slept slow so steps tell thank thanks that the this to
today trend was week weeks weight well were what when which why with work workout workouts yesterday
you your
"""
_GERMAN: Final = frozenset(_GERMAN_WORDS.split())
_ENGLISH: Final = frozenset(_ENGLISH_WORDS.split())


def detect(texts: Iterable[str]) -> Language:
    """Language of the first of `texts` that shows one; English where none does."""
    for text in texts:
        words = _WORD.findall(text.lower())
        german = sum(word in _GERMAN for word in words) + sum(
            any(c in "äöüß" for c in word) for word in words
        )
        english = sum(word in _ENGLISH for word in words)
        if german != english:
            return "de" if german > english else "en"
    return "en"
