"""The deploy verbs of `myhealth`: from a checkout to Fly.io and back (docs/design/deploy.md)."""
