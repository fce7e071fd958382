"""The emulated model: fixed rules instead of a neural network.

`decide` is a pure function of the conversation and the tools offered. To make the emulator obey what it
reads in tool results, put such a rule at the head of `decide.RULES`.
"""

from anthropic_emulator.brain.conversation import Conversation, read
from anthropic_emulator.brain.decide import decide

__all__ = ["Conversation", "decide", "read"]
