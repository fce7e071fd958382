"""The emulated model: fixed rules instead of a neural network.

`decide` is a pure function of the conversation and the tools offered. Where it is `gullible` it does
what it reads first (`gullible.py`).
"""

from anthropic_emulator.brain.conversation import Conversation, read
from anthropic_emulator.brain.decide import decide

__all__ = ["Conversation", "decide", "read"]
