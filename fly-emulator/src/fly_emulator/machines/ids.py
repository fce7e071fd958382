"""Identifiers in the shapes Fly gives them."""

from __future__ import annotations

import secrets
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ADJECTIVES = ("aged", "bold", "calm", "damp", "fancy", "green", "quiet", "rapid", "spring", "young")
_NOUNS = ("brook", "cloud", "field", "forest", "haze", "moon", "pine", "river", "sun", "wind")


def machine_id() -> str:
    """Return 14 hexadecimal digits."""
    return secrets.token_hex(7)


def ulid(milliseconds: int | None = None) -> str:
    """Return 26 characters of Crockford's base 32: 48 bits of time, 80 of chance.

    Machine versions (`instance_id`) and events carry such ids. Source: the ULID specification.
    """
    moment = int(time.time() * 1000) if milliseconds is None else milliseconds
    number = (moment << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def machine_name() -> str:
    """Return a name such as `quiet-river-2649`."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.randbelow(9000) + 1000}"


def private_ip() -> str:
    """Return an address of the form Fly's 6PN has. Nothing listens there."""
    groups = [f"{secrets.randbits(16):x}" for _ in range(3)]
    return f"fdaa:0:1:a7b:{groups[0]}:{groups[1]}:{groups[2]}:2"


def nonce() -> str:
    """Return a lease's nonce: 12 hexadecimal digits."""
    return secrets.token_hex(6)
