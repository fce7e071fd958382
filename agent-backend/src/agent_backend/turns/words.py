"""Fixed words: what the server itself says in a turn, in the model's place.

Readers get them as a text message like any other, after a `notice` event that says why; in the history the
mark is in the message's id (`transcript.with_notice`).
"""

from __future__ import annotations

from typing import NamedTuple

from agent_backend import events as agui
from agent_backend.transcript import block_id


class FixedWords(NamedTuple):
    """A text of ours, in the user's language; `notice` says why, in dotted words such as `safety.cardiac`."""

    notice: str
    text: str


def said(message_id: str, words: FixedWords) -> list[bytes]:
    """Return the events of a fixed text, to be settled with its message."""
    own_id = block_id(message_id, 0)
    events = (
        agui.Custom(name="notice", value=words.notice),
        agui.TextMessageStart(message_id=own_id),
        agui.TextMessageContent(message_id=own_id, delta=words.text),
        agui.TextMessageEnd(message_id=own_id),
    )
    return [agui.encode(event) for event in events]
