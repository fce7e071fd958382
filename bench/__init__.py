"""What this server costs, beside a bare relay, in one run: `python -m bench`."""

import warnings

# The embedded Postgres asks for a runtime folder when imported; the fallback it names is fine.
warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
