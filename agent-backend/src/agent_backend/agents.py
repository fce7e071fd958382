"""Agents are files: `agents/*.md`, front matter between two `---` lines, the system prompt below.

The front matter is a small subset of YAML 1.2: `key: value`, `[a, b]`, lists of `- item`, one level of
nested keys by indentation, "quoted" strings, comments. What YAML reads differently from a plain eye is
refused, not guessed. (PyYAML would cost 30-40 ms of every boot and knows no line numbers by key.)

Everything is checked at boot: a file that cannot be used stops it with file, line and reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec

from agent_backend.errors import AgentFileError

Thinking: TypeAlias = Literal["off", "on"]
OnBusy: TypeAlias = Literal["enqueue", "reject", "interrupt"]

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class ModelLimits(Protocol):
    """What an agent file is checked against; `prices.Model` fits."""

    @property
    def max_output_tokens(self) -> int:
        """The largest `max_tokens` the model takes."""
        ...

    @property
    def thinking(self) -> Mapping[Thinking, object | None]:
        """The thinking modes; None for one the model refuses."""
        ...


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one turn (model calls, and their price in millionths of a US dollar) and of a user's day."""

    max_steps: int
    usd_micros_per_turn: int
    usd_micros_per_user_day: int | None = None
    """What all turns of one user with this agent may cost in a day (UTC)."""


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent. `content_hash` is the SHA-256 of the file, in hex: a session notes what it began with."""

    name: str
    description: str
    engine: str
    model: str
    max_tokens: int
    thinking: Thinking
    tools: tuple[str, ...]
    budget: Budget
    on_busy: OnBusy
    system: str
    content_hash: str
    device_tools: bool = False
    """Clients may declare tools of their own for a session."""
    approvals: tuple[str, ...] = ()
    """Those of `tools` that run only after the user's yes."""


class _Budget(msgspec.Struct, forbid_unknown_fields=True):
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=200)]
    usd_per_turn: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    usd_per_user_day: Annotated[float, msgspec.Meta(gt=0, le=100_000)] | None = None


class _FrontMatter(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    description: _Text
    engine: _Text
    model: _Text
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    thinking: Thinking
    tools: list[_Text]
    budget: _Budget
    on_busy: OnBusy = "enqueue"
    device_tools: bool = False
    approvals: list[_Text] = []


def folder() -> Path:
    """Return the folder of the agents that ship with us: in the installed package, or beside src/."""
    package = Path(__file__).resolve().parent
    installed = package / "agents_builtin"
    return installed if installed.is_dir() else package.parent.parent / "agents"


def load_agents(
    directory: Path | None,
    known_tools: Collection[str],
    known_engines: Collection[str],
    known_models: Mapping[str, ModelLimits],
) -> dict[str, Agent]:
    """Read every `*.md` of `directory` (None: `folder()`); return the agents by name.

    Raises AgentFileError naming file, line and reason.
    """
    directory = directory or folder()
    agents: dict[str, Agent] = {}
    for path in sorted(directory.glob("*.md")):
        try:
            agent = _read(path, taken=agents, tools=known_tools, engines=known_engines, models=known_models)
        except _Problem as problem:
            raise AgentFileError(f"{path}:{problem.line}: {problem.reason}", hint=problem.hint) from None
        agents[agent.name] = agent
    if not agents:
        raise AgentFileError(
            f"{directory}: no agent files", hint="set AGENTS_DIR to a folder with at least one NAME.md"
        )
    return agents


class _Problem(Exception):
    """What is wrong with a file, at which of its lines (from 1)."""

    def __init__(self, line: int, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason
        self.hint = hint


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _read(
    path: Path,
    *,
    taken: Collection[str],
    tools: Collection[str],
    engines: Collection[str],
    models: Mapping[str, ModelLimits],
) -> Agent:
    raw = _bytes(path)
    lines = _lines(raw)
    end = _end_of_front_matter(lines)
    data, places = _Reader(lines[1:end], first_line=2).read()
    front = _front_matter(data, places)
    if front.name in taken:
        raise _Problem(places["name"], f"an agent {front.name!r} exists already", "rename one of the two")
    _check_names(front, places, tools=tools, engines=engines, models=models)
    _check_model(front, places, models[front.model])
    system = "\n".join(lines[end + 1 :]).strip()
    if not system:
        raise _Problem(end + 2, "the system prompt is empty", "write it below the second '---'")
    return Agent(
        name=front.name,
        description=front.description,
        engine=front.engine,
        model=front.model,
        max_tokens=front.max_tokens,
        thinking=front.thinking,
        tools=tuple(front.tools),
        budget=Budget(
            max_steps=front.budget.max_steps,
            usd_micros_per_turn=round(front.budget.usd_per_turn * 1_000_000),
            usd_micros_per_user_day=None
            if front.budget.usd_per_user_day is None
            else round(front.budget.usd_per_user_day * 1_000_000),
        ),
        on_busy=front.on_busy,
        system=system,
        content_hash=hashlib.sha256(raw).hexdigest(),
        device_tools=front.device_tools,
        approvals=tuple(front.approvals),
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _Problem(1, f"cannot be read: {error.strerror}", "check the file and its permissions") from None


def _lines(raw: bytes) -> list[str]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Problem(line, "not UTF-8", "save the file as UTF-8") from None
    lines = re.split(r"\r\n|\r|\n", text)
    for number, line in enumerate(lines, 1):
        if _CONTROL.search(line):
            raise _Problem(number, "a control character", "remove it")
    return lines


def _end_of_front_matter(lines: list[str]) -> int:
    if lines[0].rstrip() != "---":
        raise _Problem(1, "the front matter is missing", "begin the file with a line '---'")
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            return number
    raise _Problem(1, "the front matter has no end", "close it with a line '---'")


def _front_matter(data: dict[str, Any], places: dict[str, int]) -> _FrontMatter:
    try:
        return msgspec.convert(data, _FrontMatter, strict=True)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".")
        line = places.get(path, 1)
        named = re.search(r"(unknown|missing required) field `([^`]+)`", reason)
        if named is None:
            raise _Problem(line, f"{path}: {reason}", "correct the value") from None
        key = f"{path}.{named[2]}".lstrip(".")
        if named[1] == "unknown":
            line = places.get(key, line)
            raise _Problem(line, f"unknown key {key!r}", "remove it, or mend its spelling") from None
        raise _Problem(line, f"the key {key!r} is missing", "add it to the front matter") from None


def _check_names(
    front: _FrontMatter,
    places: dict[str, int],
    *,
    tools: Collection[str],
    engines: Collection[str],
    models: Collection[str],
) -> None:
    wanted = [("engine", front.engine, engines), ("model", front.model, models)]
    wanted += [(f"tools[{index}]", tool, tools) for index, tool in enumerate(front.tools)]
    for path, name, known in wanted:
        if name not in known:
            what = path.partition("s[")[0]
            hint = f"known: {', '.join(sorted(known)) or 'none'}"
            raise _Problem(places[path], f"unknown {what} {name!r}", hint)
    for index, tool in enumerate(front.tools):
        if tool in front.tools[:index]:
            raise _Problem(places[f"tools[{index}]"], f"tool {tool!r} is listed twice", "list it once")
    for index, tool in enumerate(front.approvals):
        if tool not in front.tools:
            where = places[f"approvals[{index}]"]
            raise _Problem(where, f"{tool!r} is not one of the agent's tools", "list it under tools too")


def _check_model(front: _FrontMatter, places: dict[str, int], limits: ModelLimits) -> None:
    if front.max_tokens > limits.max_output_tokens:
        raise _Problem(
            places["max_tokens"],
            f"max_tokens {front.max_tokens} is more than {front.model} takes",
            f"use at most {limits.max_output_tokens}",
        )
    if limits.thinking.get(front.thinking) is None:
        raise _Problem(
            places["thinking"],
            f"{front.model} does not take thinking: {front.thinking}",
            "choose the other mode, or another model",
        )


_KEY = re.compile(r"( *)([A-Za-z_][A-Za-z0-9_]*):(?: +(.*))?")
_ITEM = re.compile(r"( *)- +(.*)")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
_PLAIN = re.compile(r"[^\W\d_].*")
"""Text that cannot be taken for anything else: it begins with a letter."""
_NOT_TEXT = frozenset({"null", "true", "false"})
_QUOTED = re.compile(r'"[^"\\]*"')


class _Reader:
    """Reads front matter into plain data and the line of every key and list item."""

    def __init__(self, lines: list[str], *, first_line: int) -> None:
        self._source = lines
        self._line = first_line
        self._data: dict[str, Any] = {}
        self._places: dict[str, int] = {}
        self._open: str | None = None
        """The top-level key whose value stands on the lines below it."""

    def read(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the data, and the line in the file by path (`budget.max_steps`, `tools[0]`)."""
        for number, line in enumerate(self._source, self._line):
            self._line = number
            if "\t" in line:
                raise self._problem("a tab", "indent with spaces")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if item := _ITEM.fullmatch(line):
                self._on_item(item[2].strip())
            elif key := _KEY.fullmatch(line):
                text = (key[3] or "").strip()
                self._on_nested_key(key[2], text) if key[1] else self._on_key(key[2], text)
            else:
                raise self._problem("neither 'key: value' nor '- item'", "put each key on its own line")
        return self._data, self._places

    def _on_item(self, text: str) -> None:
        if self._open is None or isinstance(self._data[self._open], dict):
            raise self._problem("a list item outside a list", "put it below its key")
        items: list[Any] = self._data[self._open] or []
        self._data[self._open] = items
        self._places[f"{self._open}[{len(items)}]"] = self._line
        items.append(self._scalar(text))

    def _on_key(self, key: str, text: str) -> None:
        self._put(self._data, key, key, self._value(key, text))
        self._open = key if self._data[key] is None else None

    def _on_nested_key(self, key: str, text: str) -> None:
        if self._open is None or isinstance(self._data[self._open], list):
            raise self._problem(f"the key {key!r} is indented below nothing", "remove the indentation")
        path = f"{self._open}.{key}"
        into: dict[str, Any] = self._data[self._open] or {}
        self._data[self._open] = into
        value = self._value(path, text)
        if value is None:
            raise self._problem(f"the key {path!r} has no value", "write it on the same line")
        self._put(into, key, path, value)

    def _put(self, into: dict[str, Any], key: str, path: str, value: Any) -> None:
        if key in into:
            raise self._problem(f"the key {path!r} stands twice", "keep one of them")
        self._places[path] = self._line
        into[key] = value

    def _value(self, path: str, text: str) -> Any:
        if not text or text.startswith("#"):
            return None
        if not text.startswith("["):
            return self._scalar(text)
        inner = text.partition(" #")[0].rstrip()
        if not inner.endswith("]"):
            raise self._problem("a list without its ']'", "close it on the same line")
        parts = inner[1:-1].split(",") if inner[1:-1].strip() else []
        self._places.update((f"{path}[{index}]", self._line) for index in range(len(parts)))
        return [self._scalar(part.strip()) for part in parts]

    def _scalar(self, text: str) -> Any:
        if quoted := _QUOTED.match(text):
            rest = text[quoted.end() :]
            if rest.strip() and not rest.lstrip(" ").startswith("#"):
                raise self._problem("text after a closing quote", "quote the whole value")
            return quoted[0][1:-1]
        text = text.partition(" #")[0].rstrip()
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
        if text in {"true", "false"}:
            return text == "true"
        if not _PLAIN.fullmatch(text) or ": " in text or text.endswith(":") or text.lower() in _NOT_TEXT:
            raise self._problem("a value that YAML reads in its own way", 'put it in "double quotes"')
        return text

    def _problem(self, reason: str, hint: str) -> _Problem:
        return _Problem(self._line, reason, hint)
