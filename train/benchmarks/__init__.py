"""Suites of `benchmark.py`: speed, cost of methods, cost of the tangent kernel, fault tolerance."""

import os
import pathlib
import sys

TRAIN = pathlib.Path(__file__).parents[1]
SCRIPT = TRAIN / "benchmark.py"


def child(module, *arguments, **environment):
    """Return the keyword arguments with which `subprocess` runs a module of `train/` in a process of its own.

    Args:
        module: Name of the module, such as `"benchmarks.arm"`.
        *arguments: Its command line, strings.
        **environment: Changes of the environment.
    """
    environment = {**os.environ, **environment}
    paths = [str(TRAIN), *filter(None, [environment.get("PYTHONPATH")])]
    command = [sys.executable, "-m", module, *arguments]
    return {"args": command, "env": {**environment, "PYTHONPATH": os.pathsep.join(paths)}}
