"""The agent backend."""

__version__ = "0.1.0"
"""As in pyproject.toml; reading the installed metadata would cost the boot 20 ms."""
