"""Reads TOML values into structs, strictly: every problem is collected, with its key and what was expected.

A section is a msgspec struct; its annotations are the schema. Beside the type they may carry, in `Annotated`,
a form (`toml_forms`), `Note` (accepted, without effect), `Alias` (another spelling) or `Single` (one table
stands for an array of tables).
"""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from fly_emulator.config.toml_forms import Form, Refused
from fly_emulator.config.toml_lines import Lines
from fly_emulator.config.toml_problems import ConfigProblem, describe

MISSING: Any = object()
"""What a value reads as that was refused; its problem is in the findings."""

T = TypeVar("T", bound=msgspec.Struct)


class Section(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A table of fly.toml."""


class Note(msgspec.Struct, frozen=True):
    """The key is accepted and does nothing here; the text is the warning that says why."""

    text: str


class Alias(msgspec.Struct, frozen=True):
    """Other spellings that flyctl takes."""

    names: tuple[str, ...]


class Single(msgspec.Struct, frozen=True):
    """One table is taken for an array of one, with a warning unless Fly documents the form."""

    documented: bool = False


class Field(msgspec.Struct, frozen=True):
    """A key of a section."""

    name: str
    key: str
    kind: Any
    required: bool
    marks: tuple[Any, ...]

    def mark(self, kind: type[T]) -> T | None:
        """Find one of the annotations."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)

    @property
    def form(self) -> Form | None:
        """The form its value has to have."""
        return next((mark for mark in self.marks if hasattr(mark, "read")), None)


class Findings:
    """Collects problems and warnings of one file."""

    def __init__(self, file: str, lines: Lines, root: type[Section] | None = None) -> None:
        self.file = file
        self.root = root
        self.lines = lines
        self.problems: list[ConfigProblem] = []
        self._warnings: list[tuple[int, str]] = []
        self._places: dict[int, str] = {}

    def placed(self, section: msgspec.Struct, key: str) -> None:
        """Remember where a section stands. The caller keeps the section alive."""
        self._places[id(section)] = key

    def place(self, section: msgspec.Struct) -> str:
        """Return the path under which a section stands; empty for the file itself and for defaults."""
        return self._places.get(id(section), "")

    def refuse(self, key: str, found: str, expected: str, hint: str = "") -> None:
        """Note a problem."""
        self.problems.append(
            ConfigProblem(
                file=self.file, line=self.lines.find(key), key=key, found=found, expected=expected, hint=hint
            )
        )

    def warn(self, key: str, text: str) -> None:
        """Note a warning."""
        line = self.lines.find(key)
        place = self.file if line is None else f"{self.file}:{line}"
        warning = (line or 0, f"{place}: {key}: {text}")
        if warning not in self._warnings:
            self._warnings.append(warning)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, in the order of their lines."""
        return tuple(text for _, text in sorted(self._warnings, key=operator.itemgetter(0)))


@functools.cache
def fields_of(section: type[Section]) -> Mapping[str, Field]:
    """Return a section's fields by key, aliases included."""
    hints = get_type_hints(section, include_extras=True)
    fields: dict[str, Field] = {}
    for info in msgspec.structs.fields(section):
        kind, marks = _unwrap(hints[info.name])
        field = Field(info.name, info.encode_name, kind, info.required, marks)
        alias = field.mark(Alias)
        for key in (field.key, *(alias.names if alias else ())):
            fields[key] = field
    return fields


def inner_section(kind: Any) -> type[Section] | None:
    """Return the section that a type holds, by itself, in a tuple or in a dict."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind
    for part in get_args(kind):
        if part is not Ellipsis and (found := inner_section(part)):
            return found
    return None


def read_section(section: type[T], table: Any, key: str, findings: Findings) -> T:
    """Read a table as a section. Returns MISSING when it cannot be made."""
    if not isinstance(table, Mapping):
        brackets = f"[{key}] with single brackets" if isinstance(table, list) else f"the table [{key}]"
        findings.refuse(key, describe(table), f"a table with {_keys(section)}", f"write {brackets}")
        return MISSING
    keys = cast("type[Section]", section)
    fields = fields_of(keys)
    values: dict[str, Any] = {}
    meant: set[str] = set()
    for name, value in cast("Mapping[str, Any]", table).items():
        path = _under(key, name)
        if (field := fields.get(name)) is None:
            meant.update(_refuse_unknown(name, keys, key, findings))
        elif (read := _read_field(field, value, path, findings)) is not MISSING:
            if name != field.key:
                findings.warn(path, f"an older spelling: write {field.key}")
            # Spellings of one key add up, as flyctl takes them.
            earlier = values.get(field.name)
            values[field.name] = (*earlier, *read) if isinstance(earlier, tuple) else read
    absent = [field for field in fields.values() if field.required and field.name not in values]
    for field in absent:
        # What is misspelt or refused is not missing as well.
        if field.key not in meant and field.key not in table:
            findings.refuse(_under(key, field.key), "nothing", f"a value: [{key}] needs {field.key}")
    if absent:
        return MISSING
    made = section(**values)
    findings.placed(made, key)
    return made


def _refuse_unknown(name: str, section: type[Section], key: str, findings: Findings) -> list[str]:
    """Refuse a key, and return what it may have meant."""
    near = nearest(name, dict.fromkeys(field.key for field in fields_of(section).values()))
    hint = did_you_mean(near) or _belongs(name, section, key, findings.root)
    findings.refuse(_under(key, name), "an unknown key", f"one of {_keys(section)}", hint)
    return near


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return which of the known names a misspelt one may mean, the likeliest first."""
    folded = {key.lower().replace("-", "_"): key for key in known}
    wanted = name.lower().replace("-", "_")
    words = [key for key in folded if key in wanted.split("_") or wanted in key.split("_")]
    near = (
        difflib.get_close_matches(wanted, folded, n=1, cutoff=0.8)
        or difflib.get_close_matches(wanted, words, n=2, cutoff=0)
        or difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    )
    return [folded[key] for key in near]


def did_you_mean(names: Sequence[str]) -> str:
    """Return the hint that names what may be meant, or nothing."""
    return f"did you mean {' or '.join(names)}?" if names else ""


def _belongs(name: str, section: type[Section], key: str, root: type[Section] | None) -> str:
    """Say where a key belongs that stands in the wrong table: below this one, else at the top."""
    for table, below in _tables(section):
        if name in fields_of(below):
            return f"it belongs in [{bare(_under(key, table))}]"
    if root is not None and name in fields_of(root):
        return "it belongs at the top of the file, before the first table"
    return ""


def _tables(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield the tables below a section with their paths, the nearer ones first."""
    inner = [
        (_under(prefix, field.key), below)
        for field in fields_of(section).values()
        if get_origin(field.kind) is not dict and (below := inner_section(field.kind))
    ]
    yield from inner
    for path, below in inner:
        yield from _tables(below, path)


def _under(key: str, name: str) -> str:
    return f"{key}.{name}" if key and name else key or name


def _keys(section: type[msgspec.Struct]) -> str:
    return ", ".join(sorted(info.encode_name for info in msgspec.structs.fields(section)))


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split an annotation into its type, without None, and its marks."""
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *found = get_args(hint)
        marks = tuple(found)
    if get_origin(hint) in {Union, UnionType}:
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(kinds) == 1:
            hint = kinds[0]
    return hint, marks


def _read_field(field: Field, value: Any, key: str, findings: Findings) -> Any:
    if note := field.mark(Note):
        findings.warn(key, note.text)
    if form := field.form:
        try:
            value, warning = form.read(value)
        except Refused as refused:
            found = describe(refused.value) if refused.under else describe(value)
            expected = refused.expected if refused.under else form.expected
            findings.refuse(_under(key, refused.under), found, expected, refused.hint)
            return MISSING
        if warning:
            findings.warn(key, warning)
        if inner_section(field.kind) is None:
            return tuple(value) if get_origin(field.kind) is tuple else value
    return _read(field.kind, value, key, findings, field.mark(Single))


def _read(kind: Any, value: Any, key: str, findings: Findings, single: Single | None = None) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _read_choice(parts, value, key, findings)
    if origin is tuple:
        return _read_array(parts[0], value, key, findings, single)
    if origin is dict:
        return _read_map(parts[1], value, key, findings)
    if isinstance(kind, type) and issubclass(kind, Section):
        return read_section(kind, value, key, findings)
    return _read_scalar(kind, value, key, findings)


def _read_choice(choices: tuple[Any, ...], value: Any, key: str, findings: Findings) -> Any:
    if isinstance(value, str) and value in choices:
        return value
    known = [str(choice) for choice in choices]
    expected = " or ".join(f'"{choice}"' for choice in choices)
    findings.refuse(key, describe(value), expected, did_you_mean(nearest(str(value), known)))
    return MISSING


_SCALARS: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
}


def _read_scalar(kind: type, value: Any, key: str, findings: Findings) -> Any:
    accepted, expected = _SCALARS[kind]
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        return value
    plain = isinstance(value, str) and kind is not str
    findings.refuse(key, describe(value), expected, "leave the quotes out" if plain else "")
    return MISSING


def _read_array(kind: Any, value: Any, key: str, findings: Findings, single: Single | None) -> Any:
    section = inner_section(kind)
    if isinstance(value, Mapping) and single is not None:
        if not single.documented:
            findings.warn(key, f"one table where several may stand: write [[{bare(key)}]]")
        item = _read(kind, value, key, findings)
        return () if item is MISSING else (item,)
    if not isinstance(value, list):
        hint = f"write [[{bare(key)}]] with double brackets" if section and isinstance(value, Mapping) else ""
        findings.refuse(key, describe(value), "an array of tables" if section else "an array", hint)
        return MISSING
    items = [
        _read(kind, item, f"{key}[{index}]", findings) for index, item in enumerate(cast("list[Any]", value))
    ]
    return tuple(item for item in items if item is not MISSING)


def _read_map(kind: Any, value: Any, key: str, findings: Findings) -> Any:
    if not isinstance(value, Mapping):
        findings.refuse(key, describe(value), f"a table: [{bare(key)}]")
        return MISSING
    items = {
        str(name): _read(kind, item, f"{key}.{name}", findings)
        for name, item in cast("Mapping[str, Any]", value).items()
    }
    return {name: item for name, item in items.items() if item is not MISSING}


def bare(key: str) -> str:
    """Return the path as it stands between a table's brackets: without indices."""
    return "".join(part.partition("]")[2] if index else part for index, part in enumerate(key.split("[")))
