"""How much memory this process has held."""

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
