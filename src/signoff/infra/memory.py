"""Memory of this process: how much it uses, and when garbage is collected."""

import asyncio
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

    It does not collect first: a start leaves next to no garbage, and to look for it would take a tenth of its time.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


async def collect_as_memory_grows() -> None:
    """Collect garbage after each growth of the memory, for ever, if `collect_seldom` was called.

    A page leaves some hundred objects that refer to each other (the macros of its template and their context), and with
    them the jobs that it shows: far too few objects for a collection, and tens of megabytes.
    """
    base_mb = resident_mb()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if gc.get_threshold()[0] == COLLECT_AFTER:
            base_mb = collect_if_grown(base_mb)


def collect_if_grown(base_mb: int) -> int:
    """Collect garbage if the resident memory has grown beyond `base_mb`; return what to compare with the next time."""
    now_mb = resident_mb()
    if now_mb < base_mb + GROWN_MB:
        return min(base_mb, now_mb)
    gc.collect()
    return resident_mb()
