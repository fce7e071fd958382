"""A local Fly: reads the fly.toml that is deployed and runs its machines as real processes."""

__version__ = "0.1.0"
