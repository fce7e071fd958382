"""fly.toml: read strictly, and what machines it means."""
