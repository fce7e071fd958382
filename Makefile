# Two commands: `make run` and `make test`. They need Python 3.11 or later and nothing else;
# the environment in .venv is made on the first use and refreshed when a dependency has changed.

PYTHON ?= python3
PORT ?= 3001
ARGS ?=
LOCKED = uv.lock pyproject.toml agent-backend/pyproject.toml anthropic-emulator/pyproject.toml \
	fly-emulator/pyproject.toml myhealth-cli/pyproject.toml supabase-emulator/pyproject.toml scripts/bootstrap.py

.PHONY: run test test-long test-flyctl check bench soak flyctl clean

# Postgres, the model's emulator, the backend, demo data and a chat. Another port: make run PORT=3002.
# An empty database: make run ARGS=--fresh
run: .venv/.ready
	@PORT=$(PORT) .venv/bin/python -m myhealth_cli dev $(ARGS)

test: .venv/.ready
	.venv/bin/pytest -n 2 --dist worksteal -m "not long"

# Fifty people through deploys, good and broken, every runbook typed, the workflows' steps; CI runs these, too
test-long: .venv/.ready
	.venv/bin/pytest -n 2 --dist worksteal -m long

# What runs with a stand-in for flyctl in `make test`, with the real one; FLYCTL=/path/to/flyctl, or `make flyctl`'s
test-flyctl: .venv/.ready
	@.venv/bin/python scripts/flyctl.py --tests

check: .venv/.ready
	.venv/bin/python scripts/check.py

# This server beside the floor, in one run; writes bench/out/results.json
bench: .venv/.ready
	.venv/bin/python -m bench

# A thousand faults behind the local Fly, by fixed seeds; writes acceptance/out/soak.json
soak: .venv/.ready
	.venv/bin/python -m acceptance.soak

# The real flyctl, where Go and its module proxy are
flyctl:
	@$(PYTHON) scripts/flyctl.py

.venv/.ready: $(LOCKED)
	@$(PYTHON) scripts/bootstrap.py

# Removes the environment and the demo's data (root's database lies outside, behind a link), not caches.
clean:
	@for link in .local/dev/*/postgres; do \
		if [ -L "$$link" ]; then rm -rf "$$(readlink "$$link")"; fi; \
	done
	rm -rf .venv .local
