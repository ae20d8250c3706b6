"""The faults of `--suite=faults`, a module for each group; importing them registers them in `FAULTS`."""

from benchmarks.faults import devices, disks, hostile_files, inputs, numerics, processes, resume, soaks
from benchmarks.faults.fault import FAULTS, Attempt, Bench, Fault, UnsupportedFault

GROUPS = (devices, disks, hostile_files, inputs, numerics, processes, resume, soaks)

__all__ = ["FAULTS", "GROUPS", "Attempt", "Bench", "Fault", "UnsupportedFault"]
