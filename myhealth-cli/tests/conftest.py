"""One stack per test process, for all tests that leave it running."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .devprocess import Dev, dev


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Dev]:
    """Yield a running `myhealth dev --no-chat`; its backend comes back when a test kills it."""
    with dev(tmp_path_factory.mktemp("stack")) as running:
        yield running
