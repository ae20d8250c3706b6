"""One case of a benchmark in this process: described by JSON, then run for the requested numbers of steps.

    python -m benchmarks.arm '{"make": "benchmarks.keras_arms:distiller", "case": {}, "config": {}, "asked": 0}'

in `train/`, as `harness.Process` does. Each line on standard input is a number of steps; each answer, on standard
output, a line of JSON. All other output goes to standard error.
"""

import importlib
import json
import os
import sys
import time

from benchmarks.case import Case
from keras_wsl.training.process_memory import peak_mib

WARM_UP = 2  # Runs of one step before the first that counts: compilers and allocators settle.


def cpu_seconds():
    """CPU seconds of all threads of this process so far, and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def serve(run, asked, commands, answer):
    """Runs steps as the commands say.

    Args:
        run: Function of a number of steps, which gives the number that it did where that is another one.
        asked: When this process was asked for, in seconds of `time.monotonic`, a clock that processes share.
        commands: Iterable of lines, each a number of steps.
        answer: Function that sends a dict.
    """
    run(1)
    first = time.monotonic() - asked
    for _ in range(WARM_UP):
        run(1)
    answer({"first_step_seconds": first})
    idle_wall, idle_cpu = time.perf_counter(), cpu_seconds()
    for line in commands:
        wall, cpu = time.perf_counter(), cpu_seconds()
        idle = {"idle_wall": wall - idle_wall, "idle_cpu": cpu - idle_cpu}
        steps = int(line)
        done = run(steps) or steps
        idle_wall, idle_cpu = time.perf_counter(), cpu_seconds()
        answer({"wall": (idle_wall - wall) / done, "cpu": (idle_cpu - cpu) / done, **idle})
    answer({"peak_mib": peak_mib()})


def main():
    """Makes the arm of the argument and serves it; an error becomes an answer."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values):
        channel.write(json.dumps(values) + "\n")
        channel.flush()

    wanted = json.loads(sys.argv[1])
    module, _, name = wanted["make"].partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
        serve(make(Case(**wanted["case"]), **wanted["config"]), wanted["asked"], sys.stdin, answer)
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}", "missing": isinstance(error, ImportError)})
        raise


if __name__ == "__main__":
    main()
