"""Memory of this process."""

import os
import pathlib
import resource
import sys


def peak_mib():
    """Return the peak resident memory of this process in MiB."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        # Not `ru_maxrss`, which a process inherits from its parent on Linux.
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def held_mib():
    """Return the current resident memory of this process in MiB, or the peak if the system does not report it."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return peak_mib()
