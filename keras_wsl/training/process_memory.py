"""How much memory this process holds, and has held."""

import os
import pathlib
import resource
import sys


def peak_mib():
    """The most memory that this process has held, MiB."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        # Not `ru_maxrss`: Linux lets a process inherit that of the one that started it.
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def held_mib():
    """The memory that this process holds now, MiB; where the system does not tell, the most that it has held."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return peak_mib()
