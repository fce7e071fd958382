"""A stand-in for flyctl, where the real one cannot be had: the commands `myhealth` and our tests use.

It asks `fly-emulator serve` what flyctl asks Fly, in flyctl's order, and keeps what flyctl is known for: a
failing release command changes no machine, a rolling deploy stops at the first machine that fails and leaves
it broken, a machine that sleeps is updated and checked for nothing. What it cannot do it refuses by name.
Where the real flyctl is, `tests/test_flyctl_alike.py` holds the two against each other.

Sources: superfly/flyctl ad0172f `internal/command/`, superfly/fly-go v0.9.6; nothing of them is copied.
Only `deploy` and `config validate` read a fly.toml and import more than the standard library: starting is
most of what the other commands take.
"""
