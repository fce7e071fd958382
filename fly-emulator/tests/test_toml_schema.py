"""The schema: every key is known, every other one is named; lines are the right ones."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fly_emulator.config.fly_toml import load, parse
from fly_emulator.config.summary import summary
from fly_emulator.config.toml_lines import Lines
from fly_emulator.config.toml_problems import ConfigErrors
from fly_emulator.config.toml_schema import Alias, Findings, Section, fields_of, inner_section, read_section
from fly_emulator.config.toml_sections import FlyToml

HERE = Path(__file__).parent
TEXT = (HERE / "reference.toml").read_text()
REFERENCE = tomllib.loads(TEXT)
DOCUMENT = HERE.parents[1] / "docs" / "design" / "fly-emulator-config.md"

Step = str | int


def schema_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the path of every key, without indices; `*` stands for a name one chooses."""
    for field in {field.key: field for field in fields_of(section).values()}.values():
        path = f"{prefix}.{field.key}" if prefix else field.key
        yield path
        if inner := inner_section(field.kind):
            yield from schema_keys(inner, path + (".*" if get_origin(field.kind) is dict else ""))


def known_keys(
    section: type[Section], table: dict[str, Any], steps: tuple[Step, ...] = ()
) -> Iterator[tuple[Step, ...]]:
    """Yield where each key of a document stands that the schema (and not its author) names."""
    fields = fields_of(section)
    for name, value in table.items():
        yield (*steps, name)
        inner = inner_section(fields[name].kind)
        if inner is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from known_keys(inner, item, (*steps, name, index))
        elif get_origin(fields[name].kind) is dict:
            for chosen, item in value.items():
                yield from known_keys(inner, item, (*steps, name, chosen))
        else:
            yield from known_keys(inner, value, (*steps, name))


def dotted(steps: tuple[Step, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def without_indices(steps: tuple[Step, ...]) -> str:
    return ".".join(str(step) for step in steps if isinstance(step, str))


KEYS = sorted(known_keys(FlyToml, REFERENCE), key=dotted)


def misspelt(name: str, place: int, how: str) -> str:
    place %= len(name)
    match how:
        case "drop":
            return name[:place] + name[place + 1 :]
        case "double":
            return name[:place] + name[place] + name[place:]
        case "swap":
            return name[:place] + name[place + 1 : place + 2] + name[place] + name[place + 2 :]
        case "capital":
            return name[:place] + name[place].upper() + name[place + 1 :]
        case _:
            return name[:place] + "x" + name[place + 1 :]


def read(table: dict[str, Any]) -> Findings:
    findings = Findings("fly.toml", Lines(""))
    read_section(FlyToml, table, "", findings)
    return findings


def table_at(table: Any, steps: tuple[Step, ...]) -> Any:
    for step in steps:
        table = table[step]
    return table


def siblings(steps: tuple[Step, ...]) -> set[str]:
    """Return the keys the schema knows where this one stands."""
    section: type[Section] = FlyToml
    chosen = False
    for step in steps[:-1]:
        if isinstance(step, int) or chosen:
            chosen = False
            continue
        kind = fields_of(section)[step].kind
        chosen = get_origin(kind) is dict
        section = inner_section(kind) or section
    return set(fields_of(section))


def test_the_reference_holds_every_key_of_the_schema() -> None:
    there = {without_indices(steps).replace("checks.status", "checks.*") for steps in KEYS}
    elided = ("http_options", "tls_options", "machine_checks", "release_command_vm")
    wanted = {
        key for key in schema_keys(FlyToml) if not any(f"{name}." in key for name in elided) or key in there
    }
    assert wanted <= there
    assert not read(REFERENCE).problems
    assert load(HERE / "reference.toml").app == "reference"


def test_the_design_page_names_every_key() -> None:
    page = DOCUMENT.read_text()
    names = {path.rpartition(".")[2] for path in schema_keys(FlyToml)}
    aliases = {name for field in fields_of(FlyToml).values() if (a := field.mark(Alias)) for name in a.names}
    assert not [name for name in sorted((names | aliases) - {"*"}) if f"`{name}`" not in page]


@settings(deadline=None)
@given(
    steps=st.sampled_from(KEYS),
    place=st.integers(0, 30),
    how=st.sampled_from(["drop", "double", "swap", "capital", "other"]),
)
def test_a_misspelt_key_is_named_with_what_was_meant(steps: tuple[Step, ...], place: int, how: str) -> None:
    name = str(steps[-1])
    wrong = misspelt(name, place, how)
    known = siblings(steps)
    if wrong in known or not wrong:
        return
    table = copy.deepcopy(REFERENCE)
    parent = table_at(table, steps[:-1])
    parent[wrong] = parent.pop(name)

    problems = read(table).problems

    assert [problem.key for problem in problems] == [dotted((*steps[:-1], wrong))]
    problem = problems[0]
    assert problem.found == "an unknown key"
    assert name in problem.expected.removeprefix("one of ").split(", ")
    if len(name) > 3:
        meant = problem.hint.removeprefix("did you mean ").removesuffix("?").split(" or ")
        assert set(meant) <= known


@settings(deadline=None)
@given(steps=st.sampled_from(KEYS), value=st.sampled_from([1.5, "", "x", [], [1], {}, {"x": 1}, True, -1]))
def test_no_value_breaks_the_reader(steps: tuple[Step, ...], value: Any) -> None:
    table = copy.deepcopy(REFERENCE)
    table_at(table, steps[:-1])[steps[-1]] = value

    problems = read(table).problems

    assert all(problem.key.startswith(dotted(steps)) for problem in problems)
    assert all(problem.found and problem.expected for problem in problems)


@pytest.mark.parametrize("steps", KEYS, ids=dotted)
def test_the_line_of_a_key_is_found(steps: tuple[Step, ...]) -> None:
    line = Lines(TEXT).find(dotted(steps))

    if isinstance(table_at(REFERENCE, steps), dict) and f"[{without_indices(steps)}]" not in TEXT:
        # An inline table, or one that only its own tables name, such as [checks] by [checks.status].
        return
    assert line is not None
    assert str(steps[-1]) in TEXT.splitlines()[line - 1]


def test_lines_are_not_taken_from_strings_or_arrays() -> None:
    text = 'note = """\n[vm]\nsize = 1\n"""\nlist = [\n  "size = 2", # ]\n  [1],\n]\n[vm]\nsize = 3\n'
    lines = Lines(text)

    assert lines.find("vm.size") == 10
    assert lines.find("vm.absent") == 9
    assert lines.find("absent") is None


def test_several_spellings_of_one_key_add_up() -> None:
    findings = Findings("fly.toml", Lines(""))
    document = read_section(
        FlyToml, {"vm": [{"memory": 512}], "compute": {"memory": "1gb", "processes": ["x"]}}, "", findings
    )

    assert [vm.memory for vm in document.vm] == [512, 1024]
    assert findings.warnings == ("fly.toml: compute: an older spelling: write vm",)


@settings(deadline=None)
@given(st.data())
def test_no_text_breaks_the_reader(data: st.DataObject) -> None:
    lines = TEXT.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "repeat", "cut", "garble"]))
        line = lines[place]
        cut = data.draw(st.integers(0, max(len(line) - 1, 0)))
        lines[place : place + 1] = {
            "drop": [],
            "repeat": [line, line],
            "cut": [line[:cut]],
            "garble": [line[:cut] + data.draw(st.sampled_from(list("[]{}\"'=.#0-\\\n"))) + line[cut:]],
        }[change]
    with suppress(ConfigErrors):
        assert summary(parse("\n".join(lines)))
