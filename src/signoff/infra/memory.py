"""Memory of this process: how much it uses, and when garbage is collected."""

import asyncio
import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

STATM = Path("/proc/self/statm")
MEBIBYTE = 1024 * 1024
# Most objects of a request are freed as soon as nothing refers to them; few are left for the collector.
COLLECT_AFTER = 20_000
# Growth of the memory after which garbage is collected, however few objects it may be, and how often that is checked.
GROWN_MB = 64
CHECK_SECONDS = 0.5
# Checks without growth after which garbage is collected once more.
CALM_CHECKS = 6
# Parameter of glibc's mallopt(3), and the size from which the memory of an object is returned when it is freed.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1024 * 1024


def resident_mb() -> int:
    """Return the resident memory in MiB; where the system does not report it, the peak."""
    try:
        pages = int(STATM.read_bytes().split()[1])  # proc_pid_statm(5)
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // (MEBIBYTE if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize() // MEBIBYTE


def collect_seldom() -> None:
    """Exempt all objects that exist from garbage collection, and collect the later ones less often.

    It does not collect first: that would take a tenth of the time of a start, and find next to no garbage.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def return_large_blocks() -> None:
    """Let glibc return the memory of objects of LARGE_BYTES or more to the system when they are freed.

    By default, glibc raises this size up to 32 MiB as larger objects are freed, and a burst of requests with large
    bodies leaves a fragmented heap. With another C library, this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


async def collect_as_memory_grows() -> None:
    """Collect garbage after each growth of the memory, for ever, if `collect_seldom` was called.

    A page leaves some hundred objects that refer to each other (the macros of its template and their context), and with
    them the jobs that it shows: far too few objects for a collection, and tens of megabytes.
    """
    watch = GarbageWatch()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if gc.get_threshold()[0] == COLLECT_AFTER:
            watch.check()


class GarbageWatch:
    """Collector of garbage as the resident memory grows, and once more when that has ended."""

    def __init__(self) -> None:
        self._base_mb = resident_mb()
        self._checks_left = 0

    def check(self) -> None:
        """Collect garbage if there may be much."""
        now_mb = resident_mb()
        has_grown = now_mb >= self._base_mb + GROWN_MB
        self._checks_left = CALM_CHECKS if has_grown else max(0, self._checks_left - 1)
        if has_grown or self._checks_left == 1:
            gc.collect()
            now_mb = resident_mb()
        self._base_mb = now_mb if has_grown else min(self._base_mb, now_mb)
