"""The pages name what exists: links, files of tests, tests, settings, errors, defaults."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import asyncpg
import pytest

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_TEST_FILE = re.compile(r"\btest_\w+\.py\b")
_TEST = re.compile(r"\b(test_[a-z0-9_]+)\b(?!\.py)(\*?)")
_VARIABLE = re.compile(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_DEFINED = re.compile(r"def (test_\w+)")
_SETTING = re.compile(r'^    "([A-Z_0-9]+)": "(.*)",$', re.MULTILINE)
_OTHERS = {"NODE_ENV", "FLY_API_TOKEN", "SENTRY_DSN", "ITIMER_PROF", "O_TMPFILE", "MARKER_SPAN"}
"""The epic's own, other people's, and what an ADR has rejected."""


@cache
def tracked() -> tuple[str, ...]:
    """Return every file of the repository, by its path."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in done.stdout.splitlines() if (ROOT / name).is_file())


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md") and "/agents/" not in name]


@cache
def code() -> str:
    """Return every line that is not a page's."""
    kinds = (".py", ".sql", ".toml", ".json", ".yml", "Dockerfile", "Makefile")
    names = (name for name in tracked() if name.endswith(kinds))
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


@cache
def defined() -> frozenset[str]:
    return frozenset(_DEFINED.findall(code()))


@cache
def constants() -> frozenset[str]:
    """Return every name in capitals: settings and others."""
    return frozenset(re.findall(r"\b[A-Z][A-Z0-9_]+\b", code())) | _OTHERS


def settings() -> dict[str, str]:
    source = (ROOT / "agent-backend/src/agent_backend/settings.py").read_text(encoding="utf-8")
    return dict(_SETTING.findall(source.partition("VARIABLES: dict")[2]))


@pytest.mark.parametrize("page", pages())
def test_a_page_names_what_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = (each for each in _LINK.findall(text) if "://" not in each and not each.startswith("mailto:"))
    files = {Path(name).name for name in tracked()}
    missing = [each for each in links if not ((ROOT / page).parent / each).exists()]
    missing += [each for each in _TEST_FILE.findall(text) if each not in files]
    missing += [name + star for name, star in _TEST.findall(text) if not _there(name, star, files)]
    missing += [each for each in _VARIABLE.findall(text) if each not in constants()]
    assert not missing, f"{page} names what is not there"


def _there(name: str, star: str, files: set[str]) -> bool:
    if star:
        return any(each.startswith(name) for each in defined())
    return name in defined() or f"{name}.py" in files


def test_the_code_refers_to_pages_that_exist() -> None:
    named = set(re.findall(r"\bdocs/[\w/-]+\.md\b", code()))
    assert named
    assert {each for each in named if not (ROOT / each).is_file()} == set()


@pytest.mark.parametrize("page", [name for name in tracked() if name.startswith("docs/runbooks/")])
async def test_a_runbook_names_logs_and_metrics_that_exist_and_its_queries_run(
    page: str, database: asyncpg.Connection
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    spans = " ".join(re.findall(r"`([^`\n]+)`", _FENCED.sub("", text)))
    names = {each.removesuffix("_total") for each in re.findall(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b", spans)}
    files = {Path(name).stem for name in tracked()}
    assert names - set(re.findall(r"\w+", code())) - files == set()
    queries = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert bool(queries) == ("```sql" in text)
    for query in queries:
        await database.fetch(query)


def test_the_api_page_lists_every_error() -> None:
    page = (ROOT / "docs/design/api.md").read_text(encoding="utf-8")
    table = page.partition("| status | `code` |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`([a-z_]+)`", "\n".join(line.split("|")[2] for line in table.splitlines()[2:])))
    package = ROOT / "agent-backend/src/agent_backend"
    sources = [package / "errors.py", *sorted((package / "web").glob("*.py"))]
    raised = {
        each
        for path in sources
        for each in re.findall(r'\bcode = "([a-z_]+)"', path.read_text(encoding="utf-8"))
    } - {"bad_request"}
    ages = {"age_required", "too_young"}
    assert listed == raised | ages


def test_the_api_page_names_every_operation() -> None:
    page = (ROOT / "docs/design/api.md").read_text(encoding="utf-8")
    document = json.loads((ROOT / "protocol/openapi.json").read_bytes())
    for path in document["paths"]:
        pattern = re.sub(r"\\\{\w+\\\}", r"[^/ ]+", re.escape(path))
        assert re.search(pattern, page), f"{path} is not on the page"


_BUDGETS = ("USER_USD_PER_DAY", "USER_USD_PER_MONTH", "GLOBAL_USD_PER_DAY", "GLOBAL_USD_PER_MONTH")
_RETENTION = tuple(f"{each}_RETENTION_DAYS" for each in ("EVENT", "SESSION", "HEALTH", "LEDGER", "ERASURE"))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/design/budgets.md", _BUDGETS),
        ("docs/design/privacy.md", _RETENTION),
        ("docs/runbooks/privacy.md", _RETENTION),
    ],
)
def test_a_table_of_settings_has_their_defaults(page: str, names: tuple[str, ...]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in names:
        default = re.search(r"default ([\d.]+)", settings()[name])
        assert default, name
        row = re.search(rf"^\|[^\n]*`{name}`[^\n|]*\|\s*([\d,.]+)", text, re.MULTILINE)
        assert row, f"{page} has no row of {name}"
        assert row[1].replace(",", "") == default[1], f"{page}: {name}"
