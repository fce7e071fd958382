"""What is said: every category in both languages for every region, with the numbers of that region."""

from __future__ import annotations

from itertools import product
from string import Formatter

import pytest

from agent_backend import safety
from agent_backend.safety import flags
from agent_backend.safety.lexicon import FlagFile, HelplineFile, TextFile, load

LOCALES = [
    "de",
    "de-DE",
    "de-AT",
    "de-CH",
    "en",
    "en-DE",
    "en-GB",
    "en-US",
    "en-IE",
    "en-FR",
    "en-AU",
    "fr-FR",
]
EMERGENCY = {
    "de-DE": "112", "de-AT": "144", "de-CH": "144", "en-GB": "999", "en-US": "911", "en-IE": "112",
    "en-FR": "112", "en-AU": "local emergency number", "de": "Notruf an deinem Ort",
}  # fmt: skip
CRISIS = {
    "de-DE": ["0800 1110111", "0800 1110222", "116123"], "de-AT": ["142"], "de-CH": ["143"],
    "en-GB": ["116 123"],
    "en-US": ["988"], "en-IE": ["116 123"], "en-FR": ["findahelpline.com"], "en-AU": ["findahelpline.com"],
}  # fmt: skip


def test_every_category_is_said_everywhere_and_names_help() -> None:
    for category, locale in product(flags.categories(), LOCALES):
        text = flags.fixed_text(category, locale)
        assert "{" not in text
        assert "  " not in text
        assert len(text) < 1200
        german = bool({"nicht", "und", "oder", "ist", "kann", "braucht"} & set(text.split()))
        assert german == locale.startswith("de"), (category, locale)


@pytest.mark.parametrize(("locale", "number"), EMERGENCY.items())
def test_the_emergency_number_is_the_regions(locale: str, number: str) -> None:
    for category in ("cardiac", "stroke", "allergy", "bleeding", "fainting", "poisoning", "suicidality"):
        assert number in flags.fixed_text(category, locale)


@pytest.mark.parametrize(("locale", "numbers"), CRISIS.items())
def test_the_crisis_lines_are_the_regions(locale: str, numbers: list[str]) -> None:
    for category in ("suicidality", "self_harm", "poisoning"):
        assert all(number in flags.fixed_text(category, locale) for number in numbers)


@pytest.mark.parametrize(
    ("locale", "region"),
    [
        ("de-DE", "DE"), ("de-de", "DE"), ("de", ""), ("en", ""), ("de-Latn-AT", "AT"), ("de-LI", "CH"),
        ("en-UK", "GB"), ("en-GB", "GB"), ("it-IT", "EU"), ("en-AU", ""), ("gsw-CH", "CH"), ("x", ""),
    ],
)  # fmt: skip
def test_the_region_of_a_locale(locale: str, region: str) -> None:
    assert flags.region(locale) == region


def test_the_files_agree_with_one_another() -> None:
    texts, lines = load("texts.json", TextFile), load("helplines.json", HelplineFile).lines
    categories = set(flags.categories())
    names = {"emergency", "urgent", "crisis", "poison", "eating"}
    for language in ("de", "en"):
        assert set(texts.texts[language]) == categories
        assert set(lines[language]) == set(lines["en"])
        assert all(set(each) == names for each in lines[language].values())
        for text in (*texts.texts[language].values(), texts.crisis_too[language]):
            assert {field for _, field, *_ in Formatter().parse(text) if field} <= names


NUMBERS = (
    *("0800 1110111", "0800 1110222", "116123", "116117", "030 19240", "01 406 43 43", "145", "142", "143"),
    *("116 123", "01 809 2166", "988", "1-800-222-1222", "0221 892031", "112", "144", "911", "999", "111"),
)


def test_every_line_that_is_named_has_a_source() -> None:
    file = load("helplines.json", HelplineFile)
    sourced = " ".join(source.what for source in file.sources)
    said = " ".join(line for regions in file.lines.values() for r in regions.values() for line in r.values())
    for number in NUMBERS:
        assert number in said
        assert number in sourced
        said = said.replace(number, "")
    assert not any(c.isdigit() for c in said.replace("von 8 bis 22", "").replace("8 am to 10 pm", ""))


def test_a_rules_words_exist() -> None:
    """A misspelt set or an empty alternative would match nothing, in silence."""
    for name in ("red_flags.json", "answers.json"):
        file = load(name, FlagFile)
        rules = [rule for c in file.categories for rule in (*c.rules, *c.certain, *c.unless_answer)]
        rules += [*file.idioms, *file.follow_up, *file.negation.not_negators]
        rules += [pattern for context in file.contexts.values() for pattern in context]
        for rule in rules:
            words = [word for item in rule.split() for word in item.split("|")]
            assert all(words), rule
            assert all(word[1:] in file.sets for word in words if word.startswith("@")), rule
            assert all("$" not in word or word == "$" for word in words), rule
            assert rule.split()[-1] not in ("_", "__", "&"), rule
            assert len([item for item in rule.split() if item == "&"]) <= 2, rule
        contexts = {context for c in file.categories for context in c.unless}
        assert contexts <= set(file.contexts)


def test_a_flag_is_the_same_in_every_locale_but_for_its_text() -> None:
    found = {locale: safety.check("I want to die", locale) for locale in LOCALES}
    assert {flag and flag.category for flag in found.values()} == {"suicidality"}
    assert len({flag and flag.text for flag in found.values()}) > 6
