"""Run one suite of benchmarks.

    python train/benchmark.py --suite=speed --only=step,kd
    python train/benchmark.py --suite=faults --output_dir=runs/faults
    python train/benchmark.py --suite=faults --help

Each suite is a module of `benchmarks/` with `define_flags()` and `main()`, whose docstring describes it.
"""

import importlib
import sys

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl.training import cli

SUITES = {"speed": "speed", "method_cost": "methods", "ntk_cost": "kernel", "faults": "fault_tolerance"}


def select(argv, values=flags.FLAGS):
    """Return the module of the suite that `--suite` selects.

    Args:
        argv: List of strings, the command line; flags of the suite are ignored here.
        values: `absl.flags.FlagValues`, in which `--suite` is defined.

    Raises:
        absl.flags.Error: If `--suite` is missing, or there is no such suite.
    """
    flags.DEFINE_enum("suite", None, list(SUITES), "The suite to run.", required=True, flag_values=values)
    values(argv, known_only=True)
    return importlib.import_module(f"benchmarks.{SUITES[values.suite]}")


if __name__ == "__main__":
    try:
        suite = select(sys.argv)
    except flags.Error as error:
        if not cli.wants_help(sys.argv):
            sys.exit(f"{error} Pass --suite, one of {', '.join(SUITES)}.")
        cli.start(None)  # Prints the help text.
    suite.define_flags()
    cli.start(suite.main)
