"""CPU time of commands and of the start of a server, of several checkouts in one alternating run.

Run as `python bench/start.py ROOT… [--rounds N] [--out FILE]`. Each ROOT is a checkout of which `make setup` has run;
the last one is the one to judge. A server has started when it has answered a request. The figures are medians, and CPU
time is that of all threads, because other programs on the machine make a start longer.
"""

import argparse
import os
import re
import resource
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from result import Result

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
COMMANDS = ("--help", "token create ann@example.com", "model list")
# Bounds on the CPU time in seconds.
BOUNDS = {"--help": 0.7, "token create ann@example.com": 0.7, "model list": 0.7, "serve": 1.0}


def run_command(root: Path, folder: Path, words: Sequence[str]) -> float:
    """Run a command of a checkout, and return its CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([root / ".venv/bin/signoff", *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def start_server(root: Path, folder: Path) -> tuple[float, float]:
    """Start a server; return the CPU time and the time until it has answered a request, in seconds."""
    began, text = time.perf_counter(), b""
    command = [root / ".venv/bin/signoff", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        while not (match := re.search(rb"http://127\.0\.0\.1:(\d+)\n", text)):
            text += os.read(process.stdout.fileno(), 65536)
        with socket.create_connection(("127.0.0.1", int(match[1]))) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            if b" 200 " not in connection.recv(4096):
                raise SystemExit(f"{root.name} does not answer.")
        elapsed = time.perf_counter() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.terminate()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS, elapsed


def main() -> None:
    """Measure, and print a row for each command and checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    roots = [root.resolve() for root in options.roots]
    cpu, elapsed = dict[tuple[str, Path], list[float]](), dict[Path, list[float]]()
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name:
        folders = {root: Path(name) / str(number) for number, root in enumerate(roots)}
        for root, folder in folders.items():
            folder.mkdir()
            run_command(root, folder, ["user", "create", "ann@example.com", "--role", "admin"])
        for _ in range(options.rounds):
            for root, folder in folders.items():
                for words in COMMANDS:
                    cpu.setdefault((words, root), []).append(run_command(root, folder, words.split()))
                used, took = start_server(root, folder)
                cpu.setdefault(("serve", root), []).append(used)
                elapsed.setdefault(root, []).append(took)
    result = Result("command", *(f"{root.name}, CPU s" for root in roots), "bound", "holds")
    for words, bound in BOUNDS.items():
        figures = [cpu[words, root] for root in roots]
        cells = [f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for each in figures]
        holds = "yes" if statistics.median(figures[-1]) <= bound else "NO"
        result.add(f"`signoff {words}`", *cells, f"≤ {bound}", holds)
    times = [f"{statistics.median(elapsed[root]):.2f} s" for root in roots]
    result.add("`signoff serve`, elapsed", *times, "", "")
    result.save(options.out)


if __name__ == "__main__":
    main()
