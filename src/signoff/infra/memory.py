"""Memory use of this process."""

import resource
import sys
from pathlib import Path

STATM = Path("/proc/self/statm")
MEBIBYTE = 1024 * 1024


def resident_mb() -> int:
    """Return the resident memory in MiB; where the system does not report it, the peak."""
    try:
        pages = int(STATM.read_bytes().split()[1])  # proc_pid_statm(5)
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // (MEBIBYTE if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize() // MEBIBYTE
