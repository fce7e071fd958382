"""Writes protocol/openapi.json from the declared operations; `--check` only says whether it is fresh."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from agent_backend.app import OPERATIONS, SOCKETS
from agent_backend.web.openapi import document

TARGET = Path(__file__).resolve().parent.parent / "protocol" / "openapi.json"


def main() -> int:
    """Write or check; exit 1 when the checked-in document is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if it would change")
    check = parser.parse_args().check
    text = json.dumps(document(OPERATIONS, SOCKETS), indent=2, ensure_ascii=False) + "\n"
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    if check:
        sys.stderr.write("protocol/openapi.json is stale: run `python scripts/openapi.py`\n")
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
