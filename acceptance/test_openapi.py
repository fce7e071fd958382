"""The published document against a running server: no 5xx, and nothing that it does not tell of."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

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
)
SECONDS = 22


def _document(folder: Path) -> Path:
    """Return the document without the schemas of whole event streams.

    OpenAPI 3.1 describes a stream as one string; schemathesis takes that for the schema of each event. The
    events are judged by `verifier.py` instead.
    """
    document: dict[str, Any] = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    for item in document["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    path = folder / "openapi.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


async def test_schemathesis_finds_no_5xx_and_no_undocumented_status(
    site: Site, pair: Pair, as_user: AsUser, tmp_path: Path
) -> None:
    client = as_user(pair.a, "schemathesis")
    session = await client.new_session()
    await take(client.answer(session, say(tokens=2)))
    options = {
        "--url": pair.a.url,
        "--header": "Authorization:" + site.headers("schemathesis")["Authorization"],
        "--checks": ",".join(CHECKS),
        "--phases": "examples,coverage,fuzzing,stateful",
        "--exclude-path": "/v1/stream",  # a WebSocket; test_bad_input.py
        "--max-examples": "12",
        "--max-time": str(SECONDS),
        "--request-timeout": "10",
        "--seed": "1",
        "--generation-database": "none",
        "--suppress-health-check": "all",
        "--warnings": "off",
    }
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        str(_document(tmp_path)),
        *(part for option in options.items() for part in option),
        "--no-color",
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": str(HOOKS),
            "EXISTING": session,
            "ERASED": site.headers("schemathesis-erased")["Authorization"],
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(SECONDS + 40):
        out, _ = await process.communicate()
    report = out.decode()
    assert process.returncode == 0, report
    assert await client.messages(session), "the user itself was erased"
    # All operations but the WebSocket's.
    paths = json.loads(DOCUMENT.read_text(encoding="utf-8"))["paths"]
    count = sum(len(item) for item in paths.values()) - 1
    assert f"Tested: {count}\n" in report, report
