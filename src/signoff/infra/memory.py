"""Memory of this process: how much it uses, and when garbage is collected."""

import gc
import resource
import sys
from pathlib import Path

STATM = Path("/proc/self/statm")
MEBIBYTE = 1024 * 1024
# Most objects of a request are freed as soon as nothing refers to them; few are left for the collector.
COLLECT_AFTER = 20_000


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
