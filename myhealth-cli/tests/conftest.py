"""One stack per test process, for all tests that leave it running."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .devprocess import Dev, dev


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Dev]:
    """Yield a `myhealth dev --no-chat` that stays awake; its backend comes back when a test kills it."""
    with dev(tmp_path_factory.mktemp("stack"), IDLE_SECONDS="3600") as running:
        yield running
