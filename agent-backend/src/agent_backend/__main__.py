"""`python -m agent_backend`: the same as the command `agent-backend`."""

import sys

from agent_backend.cli import main

sys.exit(main())
