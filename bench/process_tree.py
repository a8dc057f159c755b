"""Process that is measured together with the processes that it starts."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 90
OTHERS = re.compile("^SIGNOFF_|_proxy$", re.IGNORECASE)
"""Environment variables that are not passed on: no request goes through a proxy."""
STOP_SECONDS = 10
PARENT, ENDED_CHILDREN = 1, slice(13, 15)
"""Places of the parent and of the times of ended children in `/proc/PID/stat`, behind the name of the command."""
CPU_CLOCK = 2
"""Kind of the clock of a process, of which `clock_getcpuclockid(3)` makes its number."""
Outcome = TypeVar("Outcome")


class ProcessTree:
    """Command that runs on one core, with all its descendants."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        core: int | None,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        output: str = "output",
    ) -> None:
        """Start the command in `folder`, with its output in a file there; no core leaves the choice to the system."""
        environment = {name: value for name, value in os.environ.items() if not OTHERS.search(name)}
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        # A process that is stopped would stay for ever if this one were killed.
        ending = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        self._output = folder / output
        with self._output.open("wb") as file:
            self._process = subprocess.Popen(
                [*pinned, *ending, *command],
                cwd=folder,
                env=environment | dict(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until the command has printed what `pattern` matches, and return the match."""
        return self.wait_until(lambda: re.search(pattern, self._output.read_bytes()))

    def wait_until(self, ready: Callable[[], Outcome | None]) -> Outcome:
        """Wait for a result of `ready`; raise SystemExit with the last lines of output if there is none in time."""
        deadline = time.monotonic() + READY_SECONDS
        while not (outcome := ready()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._output.read_text(errors="replace").splitlines()[-15:]
                raise SystemExit("\n".join([f"{self._process.args} ended, or is not ready:", *lines]))
            time.sleep(0.05)
        return outcome

    @property
    def pid(self) -> int:
        """Return the process that the others descend from."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that all threads of all processes have used."""
        return cpu_seconds(self._process.pid)

    def memory_mb(self) -> float:
        """Return the memory in MB; a page that several processes share counts once."""
        total = 0
        for pid in stats_of(self._process.pid):
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1000

    def pause(self) -> None:
        """Stop all processes until `resume`, so that they do not disturb others."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all processes run."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End all processes, and kill those that do not end in time."""
        pids = [*stats_of(self._process.pid)]
        self.resume()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in stats_of(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def cpu_seconds(*roots: int) -> float:
    """Return the CPU time of processes and of all that descend from them, of all their threads."""
    total = 0.0
    for root in roots:
        for pid, fields in stats_of(root).items():
            with suppress(OSError):  # it has ended
                total += time.clock_gettime((~pid << 3) | CPU_CLOCK)
                total += sum(int(ticks) for ticks in fields[ENDED_CHILDREN]) / CLOCK_TICKS
    return total


def stats_of(root: int) -> dict[int, list[str]]:
    """Return the fields of `/proc/PID/stat` of a process and of all that descend from it."""
    stats = dict[int, list[str]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return {pid: stats[pid] for pid in descendants(root, stats)}


def descendants(root: int, stats: Mapping[int, Sequence[str]]) -> list[int]:
    """Return the process `root`, if it exists, and all that descend from it, parents first."""
    tree = [root] if root in stats else []
    for parent in tree:
        tree += [pid for pid, fields in stats.items() if int(fields[PARENT]) == parent]
    return tree
