"""The command of this program and the installation of its extras, for messages that say what to run."""

import os
import shutil
import sys
from pathlib import Path


def program_command() -> str:
    """Return the command of this program as an operator on this machine can type it, such as `.venv/bin/signoff`."""
    if shutil.which("signoff") is not None:
        return "signoff"
    return os.path.relpath(Path(sys.executable).with_name("signoff"))


def install_hint(extra: str) -> str:
    """Return how to install this package with an extra, to follow what needs it in a message."""
    package = f"pip install 'WHEEL[{extra}]', or in a clone pip install -e '.[{extra}]'"
    return f"install Signoff with the extra `{extra}`: {package}"
