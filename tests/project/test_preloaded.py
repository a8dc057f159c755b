"""Processes that are forked from a template are like those that Python starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.programs import is_alive
from support.preloaded import PreloadedProcess
from support.processes import run_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc; elsewhere no process is forked")

PROGRAM = """
import asyncio, json, os, signal, sys, threading
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "input": sys.stdin.read(), "folder": os.getcwd(),
    "environment": dict(os.environ), "parent": os.getppid(), "group": os.getpgid(0), "session": os.getsid(0),
    "umask": os.umask(0), "handlers": {name: str(signal.getsignal(name)) for name in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "threads": threading.active_count(),
    "descriptors": [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
    "encodings": [sys.stdin.encoding, sys.stdout.encoding], "name": __name__, "terminal": sys.stdout.isatty(),
}))
print("an error", file=sys.stderr)
sys.exit(7)
"""


def test_a_forked_process_has_what_a_new_one_has(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "one", "two words"]
    environment = {"PATH": os.environ["PATH"], "SOMETHING": "ä", "LANG": "C.UTF-8"}
    forked = run_command(command, stdin="hello", env=environment, cwd=tmp_path)
    new = subprocess.run(
        command, input="hello", env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert json.loads(forked.stdout) == json.loads(new.stdout)
    assert (forked.stderr, forked.returncode) == (new.stderr, new.returncode) == ("an error\n", 7)


def test_a_forked_process_has_imported_the_product_and_made_its_routes() -> None:
    program = "import sys; print(sys.modules['signoff.server.http']._litestar_app.cache_info().currsize)"
    assert run_command([sys.executable, "-c", program]).stdout == "1\n"


def test_a_forked_process_leaves_what_was_imported_out_of_its_collections() -> None:
    program = "import gc; print(gc.get_freeze_count() > 100_000 > len(gc.get_objects()))"
    assert run_command([sys.executable, "-c", program]).stdout == "True\n"


def test_an_exception_ends_a_forked_process_as_any_other() -> None:
    result = run_command([sys.executable, "-c", "raise ValueError('no')"])
    assert result.returncode == 1
    assert result.stderr.endswith("ValueError: no\n")


def test_a_signal_ends_a_forked_process_and_its_end_is_seen() -> None:
    command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]
    with PreloadedProcess(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert not is_alive(process.pid)


def test_a_forked_module_reads_its_arguments_and_restarts_itself_by_them() -> None:
    assert run_command([sys.executable, "-m", "json.tool", "--compact"], stdin="[1, 2]").stdout == "[1,2]\n"
    again = (
        "import os, sys; os.environ.pop('AGAIN', 0) and os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])"
    )
    result = run_command([sys.executable, "-c", f"{again}; print(*sys.argv)", "on"], env=os.environ | {"AGAIN": "1"})
    assert result.stdout == "-c on\n"
