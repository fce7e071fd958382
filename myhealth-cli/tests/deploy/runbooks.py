"""Every command of the runbooks, as the pages have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from .installed import ROOT

FOLDER: Final = ROOT / "docs" / "runbooks"
PAGES: Final = tuple(sorted(path.stem for path in FOLDER.glob("*.md")))
ACCOUNT: Final = "(account)"
"""Says that a command needs an account at Fly.io, Supabase or GitHub, and that no test types it."""

_PROGRAMS: Final = frozenset(
    (
        *("agent-backend", "brew", "curl", "docker", "env", "export", "fly", "flyctl", "gh", "git", "make"),
        *("myhealth", "npm", "pip", "printf", "psql", "python", "python3", "read", "rm", "set", "sh"),
        *("supabase", "uv"),
    )
)
"""What an inline `code` begins with if it is a command; in a block every line is one."""
_SHELL: Final = frozenset({"", "sh", "bash", "shell", "console"})
_FENCE: Final = re.compile(r"^\s*```(\w*)\s*$")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*$")
_INLINE: Final = re.compile(r"`([^`]+)`")


class Command(NamedTuple):
    """A command: its text without a comment; `account`: its line says that it needs one."""

    page: str
    line: int
    text: str
    account: bool
    block: bool = False


def commands(page: str) -> list[Command]:
    """Return the commands of a page, in its order."""
    return found(page, (FOLDER / f"{page}.md").read_text("utf-8"))


def found(page: str, text: str) -> list[Command]:
    """Return the commands of a text, in its order."""
    lines = text.splitlines()
    fenced = list(_fenced(lines))
    prose = "\n".join("" if language is not None else line for language, line in fenced)
    inline = [
        Command(page, prose.count("\n", 0, match.start()) + 1, " ".join(match[1].split()), account)
        for match in _INLINE.finditer(prose)
        for account in [_marked(prose, match)]
    ]
    blocks = [
        Command(page, number, command, ACCOUNT in line, block=True)
        for number, (language, line) in enumerate(fenced, 1)
        if language in _SHELL and (command := _COMMENT.sub("", line).strip().removeprefix("$ "))
    ]
    told = [each for each in inline if each.text.split()[0] in _program_names() and " " in each.text]
    return sorted((*told, *blocks), key=lambda each: each.line)


def _program_names() -> frozenset[str]:
    return _PROGRAMS | {f".venv/bin/{each}" for each in _PROGRAMS}


def _fenced(lines: list[str]) -> Iterator[tuple[str | None, str]]:
    """Yield each line with the language of the block it stands in; None: in no block, or its fence."""
    language: str | None = None
    for line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            yield language, line
            continue
        language = fence[1] if language is None else None
        yield "fence", ""


def _marked(prose: str, match: re.Match[str]) -> bool:
    """Say whether a mark follows an inline command at once."""
    return re.match(rf"\s*\**{re.escape(ACCOUNT)}", prose[match.end() :]) is not None
