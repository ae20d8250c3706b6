"""Call a function in a process of its own: for faults that need another environment, and for calls that may hang.

    python -m benchmarks.faults.child benchmarks.faults.devices:mirrored '[4, "runs/x"]'

The last line on standard output is what the function returned, as JSON; what else is printed goes to standard error.
"""

import importlib
import json
import os
import subprocess
import sys

from benchmarks import child

TIMEOUT = 1200


def start(function, *arguments, **environment):
    """Start a function in a process of its own, and return the process.

    Args:
        function: A function of a module, whose arguments and result JSON can hold.
        *arguments: Its arguments.
        **environment: Environment variables.
    """
    name, values = f"{function.__module__}:{function.__name__}", json.dumps(arguments, default=str)
    return subprocess.Popen(
        **child("benchmarks.faults.child", name, values, **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process, timeout=TIMEOUT):
    """Return what the function of a started process returned.

    Raises:
        RuntimeError: If the process failed, with the end of its output.
        subprocess.TimeoutExpired: If it took more than `timeout` seconds. It is then killed.
    """
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"The process ended with status {process.returncode}: {errors[-3000:]}")
    return json.loads(output.splitlines()[-1])


def call(function, *arguments, timeout=TIMEOUT, **environment):
    """Return what a function returns in a process of its own: `answer` of `start`."""
    return answer(start(function, *arguments, **environment), timeout)


def main(name, arguments):
    """Call the function and print what it returns."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = name.partition(":")
    print(
        json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))), file=channel, flush=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
