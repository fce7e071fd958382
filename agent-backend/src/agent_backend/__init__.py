"""The agent backend."""
