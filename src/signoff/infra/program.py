"""The command of this program, for messages that say what to run."""

import os
import shutil
import sys
from pathlib import Path


def program_command() -> str:
    """Return the command of this program as an operator on this machine can type it, such as `.venv/bin/signoff`."""
    if shutil.which("signoff") is not None:
        return "signoff"
    return os.path.relpath(Path(sys.executable).with_name("signoff"))
