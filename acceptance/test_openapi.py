"""The published document against a running server: no 5xx, and nothing that it does not tell of."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from .client import say, take
from .conftest import AsUser, Pair
from .stack import Site

DOCUMENT = Path(__file__).resolve().parent.parent / "protocol" / "openapi.json"
HOOKS = Path(__file__).resolve().parent / "openapi_hooks.py"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
    "made_is_there",  # openapi_hooks.py
)
LEAST_LINKS = 10
"""Of the document's links and those that schemathesis infers from its schemas."""
FUZZING_SECONDS = 14
STATEFUL_SECONDS = 8


def _document(folder: Path, *, conversations: bool) -> Path:
    """Return the document, or its operations of a conversation, without the schemas of whole event streams.

    OpenAPI 3.1 describes a stream as one string; schemathesis takes that for the schema of each event. The
    events are judged by `verifier.py` instead.
    """
    document: dict[str, Any] = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    # A user who is gone can be asked nothing more; erasure has tests of its own.
    del document["paths"]["/v1/me"]
    if conversations:
        paths = {path: item for path, item in document["paths"].items() if _in_conversations(path)}
        document["paths"] = paths
    for item in document["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    path = folder / "openapi.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _in_conversations(path: str) -> bool:
    return path.startswith("/v1/sessions/{session_id}") and "{call}" not in path


async def _run(site: Site, pair: Pair, session: str, folder: Path, phases: str, seconds: int) -> str:
    """Run schemathesis and return its report; what it finds fails the test."""
    options = {
        "--url": pair.a.url,
        "--header": "Authorization:" + site.headers("schemathesis")["Authorization"],
        "--checks": ",".join(CHECKS),
        "--phases": phases,
        "--exclude-path": "/v1/stream",  # a WebSocket; test_bad_input.py
        "--max-examples": "12",
        "--max-time": str(seconds),
        "--request-timeout": "10",
        "--seed": "1",
        "--generation-database": "none",
        "--suppress-health-check": "all",
        "--warnings": "off",
    }
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        str(_document(folder, conversations=phases == "stateful")),
        *(part for option in options.items() for part in option),
        "--no-color",
        cwd=folder,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": str(HOOKS),
            "EXISTING": session,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(seconds + 40):
        out, _ = await process.communicate()
    report = out.decode()
    assert process.returncode == 0, report
    return report


async def test_schemathesis_finds_no_5xx_and_no_undocumented_status(
    site: Site, pair: Pair, as_user: AsUser, database: asyncpg.Connection, tmp_path: Path
) -> None:
    client = as_user(pair.a, "schemathesis")
    session = await client.new_session()
    await take(client.answer(session, say(tokens=2)))
    report = await _run(site, pair, session, tmp_path, "examples,coverage,fuzzing", FUZZING_SECONDS)
    # What was fuzzed withdraws consents too.
    await client.consent(again=True)
    # All operations but the WebSocket's.
    paths = json.loads(_document(tmp_path, conversations=False).read_text(encoding="utf-8"))["paths"]
    count = sum(len(item) for item in paths.values()) - 1
    assert f"Tested: {count}\n" in report, report
    before = int(await database.fetchval(_LINKED, UUID(session)) or 0)
    report = await _run(site, pair, session, tmp_path, "stateful", STATEFUL_SECONDS)
    followed = re.search(r"API Links:\s+(\d+) covered", report)
    assert followed is not None, report
    assert int(followed[1]) >= LEAST_LINKS, report
    # They led from a session that was made that way to turns in it.
    assert int(await database.fetchval(_LINKED, UUID(session)) or 0) > before


_LINKED = """
    SELECT count(*) FROM myhealth.turns t JOIN myhealth.sessions s ON s.id = t.session_id
    WHERE s.user_id = (SELECT user_id FROM myhealth.sessions WHERE id = $1) AND s.id <> $1
"""
