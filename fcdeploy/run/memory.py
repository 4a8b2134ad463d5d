"""How much memory this process has in use."""

import os
import resource
from pathlib import Path


def resident_bytes() -> int:
    """Return how much memory this process has in use now, pages of mapped files included."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def peak_bytes() -> int:
    """Return the most memory this process has had in use, in bytes; pages of mapped files count while resident."""
    try:
        # Not ru_maxrss, which a child inherits from its parent.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
