"""Finds the categories of a data file in a text; pure, and linear in the text's length.

What decides beside the patterns: idioms (what overlaps one does not count), negation (a negator in the same
clause at most `_SCOPE` words before a match, nothing ending its scope between them), and contexts, which
speak of something that is not so now (long ago, in the news, if it were) and hold for their sentence.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from agent_backend.safety.lexicon import Category, FlagFile
from agent_backend.safety.patterns import Matcher, Span
from agent_backend.safety.words import Words, split

_SCOPE = 5
_AFTER = 2
"""Words after a match in which a negator still means it: "die Brust schmerzt nicht"."""
_LIST = 8
"""Words over which a negation reaches in a list: "no chest pain, dizziness or nausea"."""

_IDIOM: Final = "idiom"
_NOT_NEGATOR: Final = "not a negator"
_NEGATOR: Final = "negator"
_AFTERWARDS: Final = "negates what stands before it"
_END: Final = "end of a negation"
_OR: Final = "or"
_BUT: Final = "but"


class Detector:
    """Looks for all categories of a file at once."""

    def __init__(self, file: FlagFile) -> None:
        self._categories = {category.name: category for category in file.categories}
        negators = set(file.sets[file.negation.negators].split())
        self._labels: list[tuple[str, str]] = []
        patterns: list[tuple[str, int]] = []

        def add(kind: str, name: str, texts: list[str]) -> None:
            self._labels.append((kind, name))
            patterns.extend((text, len(self._labels) - 1) for text in texts)

        for category in file.categories:
            meant = [rule for rule in category.rules if _names(rule, negators)]
            add("rule", category.name, [rule for rule in category.rules if rule not in meant])
            add("meant", category.name, meant)
            add("certain", category.name, category.certain)
            add("unless", category.name, category.unless_answer)
        for name, context in file.contexts.items():
            add("context", name, context)
        add(_IDIOM, "", file.idioms)
        add(_NOT_NEGATOR, "", file.negation.not_negators)
        add(_NEGATOR, "", ["@" + file.negation.negators])
        add(_AFTERWARDS, "", file.negation.afterwards.split())
        add(_END, "", file.negation.ends.split())
        add(_OR, "", ["or|oder|noch|nor|bzw"])
        add(_BUT, "", ["but|aber|jedoch|doch|although|though|obwohl|trotzdem"])
        self._matcher = Matcher(patterns, file.sets, file.typing and file.typing.ordinary.split())

    def find(self, text: str) -> list[str]:
        """Return the categories found in a text, the most urgent first."""
        words = split(text)
        by_kind: dict[str, list[tuple[str, Span]]] = defaultdict(list)
        for span in self._matcher.spans(words):
            kind, name = self._labels[span.label]
            by_kind[kind].append((name, span))
        if not by_kind["rule"] and not by_kind["meant"] and not by_kind["certain"]:
            return []
        reading = _Reading(words, by_kind)
        found = {name for name, span in by_kind["certain"] if not reading.in_idiom(span)}
        for kind in ("rule", "meant"):
            found |= {
                name
                for name, span in by_kind[kind]
                if reading.counts(span, self._categories[name], negatable=kind == "rule")
            }
        found -= {name for name, _ in by_kind["unless"]}
        return [name for name in self._categories if name in found]


class _Reading:
    """A text's words with what was found beside the categories."""

    def __init__(self, words: Words, by_kind: dict[str, list[tuple[str, Span]]]) -> None:
        self._words = words
        self._idioms = _covered(by_kind[_IDIOM])
        self._negators = _covered(by_kind[_NEGATOR]) - _covered(by_kind[_NOT_NEGATOR])
        self._afterwards = _covered(by_kind[_AFTERWARDS]) - _covered(by_kind[_NOT_NEGATOR])
        self._ends = _covered(by_kind[_END])
        self._ors = _covered(by_kind[_OR])
        self._buts: dict[int, int] = {}
        """Of each sentence the last "but"."""
        for _, span in by_kind[_BUT]:
            self._buts[words.sentence[span.start]] = span.start
        self._contexts = {(name, words.sentence[span.start]) for name, span in by_kind["context"]}

    def in_idiom(self, span: Span) -> bool:
        return any(k in self._idioms for k in range(span.start, span.end))

    def counts(self, span: Span, category: Category, *, negatable: bool) -> bool:
        if self.in_idiom(span):
            return False
        sentence = self._words.sentence[span.start]
        if any(self._holds(context, sentence) for context in category.unless):
            return False
        if not negatable or not self._negated(span):
            return True
        return category.but_counts and self._buts.get(sentence, -1) >= span.end

    def _holds(self, context: str, sentence: int) -> bool:
        if (context, sentence) not in self._contexts:
            return False
        # "I had an infarction three years ago, and now it hurts again."
        return context != "past" or ("now", sentence) not in self._contexts

    def _negated(self, span: Span) -> bool:
        clause = self._words.clause
        if any(k in self._negators for k in range(span.start, span.end)):
            return True
        for k in range(span.start - 1, max(-1, span.start - 1 - _SCOPE), -1):
            if clause[k] != clause[span.start]:
                break
            if k in self._ends:
                return False
            if k in self._negators:
                return True
        last = clause[span.end - 1]
        after = range(span.end, min(span.end + _AFTER, len(clause)))
        for k in after:
            if clause[k] != last or k in self._ends:
                break
            if k in self._afterwards:
                return True
        return self._in_negated_list(span)

    def _in_negated_list(self, span: Span) -> bool:
        """Say whether a negator before commas means this too: a list whose last part comes after "or"."""
        words = self._words
        sentence = words.sentence[span.start]
        near = range(max(0, span.start - _LIST), min(len(words.word), span.end + _LIST))
        inside = [k for k in near if words.sentence[k] == sentence]
        if not any(k in self._ors for k in inside):
            return False
        for k in reversed([k for k in inside if k < span.start]):
            if k in self._ends:
                return False
            if k in self._negators:
                return True
        return False


def _names(rule: str, words: set[str]) -> bool:
    """Say whether a rule names one of these words itself; then a negation in it is meant."""
    return any(word in words for item in rule.split() for word in item.split("|"))


def _covered(spans: list[tuple[str, Span]]) -> set[int]:
    return {k for _, span in spans for k in range(span.start, span.end)}
