"""The labelled messages, all written for this test: nothing is copied from a corpus.

`messages.dev.tsv` was tuned on. `messages.held.tsv` was written and committed before the detector had a
rule, and `paraphrases.json` (sentences in frames) before it was first run on either; neither was tuned on.
The same hand wrote rules and messages, so "held out" says less here than it does elsewhere:
docs/design/safety.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from agent_backend import safety

HERE = Path(__file__).parent


class Message(NamedTuple):
    """A message with the category it should be given, or `none`."""

    language: str
    label: str
    text: str


class Score(NamedTuple):
    """How often a category was found where it is, missed, and found where it is not."""

    found: int
    missed: int
    wrong: int

    @property
    def recall(self) -> float:
        return self.found / (self.found + self.missed)

    @property
    def precision(self) -> float:
        return self.found / (self.found + self.wrong) if self.found else 0.0


def written(part: str) -> list[Message]:
    """Return the messages of a part, `dev` or `held`."""
    lines = (HERE / f"messages.{part}.tsv").read_text("utf-8").splitlines()
    return [Message(*line.split("\t")) for line in lines]


def paraphrased() -> list[Message]:
    """Return every sentence in every frame."""
    data = json.loads((HERE / "paraphrases.json").read_text("utf-8"))
    return [
        Message(language, label, frame.format(core))
        for language, part in data.items()
        for label, cores in part["cores"].items()
        for core in cores
        for frame in part["frames"]
    ]


def label_of(text: str) -> str:
    """Return the category a message is given, or `none`."""
    flag = safety.check(text, "en")
    return flag.category if flag else "none"


def scores(messages: list[Message]) -> dict[tuple[str, str], Score]:
    """Return the score of each language and category; `any` is a flag of whatever category."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for language, label, text in messages:
        given = label_of(text)
        if label != "none":
            counts[language, label][given != label] += 1
            counts[language, "any"][given == "none"] += 1
        if given not in ("none", label):
            counts[language, given][2] += 1
        if given != "none" and label == "none":
            counts[language, "any"][2] += 1
    return {key: Score(*value) for key, value in sorted(counts.items())}


def table(title: str, of: dict[tuple[str, str], Score]) -> str:
    """Return scores as text."""
    lines = [f"{title:<26}{'messages':>9}{'recall':>8}{'precision':>11}"]
    lines += [
        f"{language} {category:<23}{score.found + score.missed:>9}"
        f"{score.recall:>8.2f}{score.precision:>11.2f}"
        for (language, category), score in of.items()
    ]
    return "\n".join(lines)
