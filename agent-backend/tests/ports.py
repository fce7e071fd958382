"""Ports for servers that are told theirs and take a moment to listen on it."""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST = 10_000
"""Below those that the kernel gives to whoever asks for any, and below those of the local Fly's machines."""
_EACH = 1_250
_turn = itertools.count(random.randrange(_EACH))


def free_port() -> int:
    """Return a port that nobody listens on, of those that only this one of the test processes hands out.

    Of the kernel's own, another process could be given the same before the server listens on it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + worker % 8 * _EACH
    while True:
        port = first + next(_turn) % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
