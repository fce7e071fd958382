"""Identifiers in the API's form: a prefix, `01`, and 22 base58 characters."""

import random
from typing import Final

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LENGTH: Final = 22


class Ids:
    """A source of ids: never the same twice without a seed, always the same series with one.

    Without a seed ids are unique across restarts too, as the API's are: whoever stores them may rely on it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311 - ids of an emulator are no secrets

    def new(self, prefix: str) -> str:
        """Give a new id such as `msg_01...`."""
        return f"{prefix}01{''.join(self._random.choices(_ALPHABET, k=_LENGTH))}"
