"""The frame of the scripts: errors that a user can mend, and, of those that train one network, flags and last line."""

import pathlib
import sys

from absl import app, flags, logging

import environment  # noqa: F401
import settings
from keras_wsl import callbacks, distribute


def status(work):
    """The exit status of a script, and a line on what ended it.

    That of `work()`, 0 if it returns nothing; 2 after an error of a user's; 143 after SIGTERM, with the state saved.
    """
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every function that it saves.
    try:
        return work() or 0
    except (ValueError, OSError, ImportError, MemoryError, callbacks.NonFiniteLoss) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except callbacks.Terminated as end:
        print(f"{end} Pass --resume.", file=sys.stderr)
        return callbacks.Termination.status


def start(work, *names):
    """Runs a script and ends the process with its `status`.

    Args:
        work: Function of the script's arguments, each of which has a name.
        names: What the user has to give besides flags.
    """

    def main(argv):
        if len(argv) - 1 != len(names):
            raise app.UsageError(f"Expected {' and '.join(names) or 'flags alone'}. Received: {argv[1:]}.")
        return status(lambda: work(*argv[1:]))

    tell_of_all_flags(flags.FLAGS)
    app.run(main)


def tell_of_all_flags(values):
    """Has `--help` list what other files of this folder define in these flags too, such as the settings of a run."""
    here = pathlib.Path(__file__).parent
    for name, defined in values.flags_by_module_dict().items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and pathlib.Path(file).parent == here:
            for flag in defined:
                values.register_key_flag_for_module(sys.argv[0], flag)


def main(train, kind):
    """Runs a script that trains one network.

    Args:
        train: Function of the settings that runs and returns the content of `result.json`.
        kind: The class of its settings.

    Ends the process with status 2 and one line after an error of the user's.
    """

    def run():
        wanted = settings.from_flags(flags.FLAGS, kind)
        if flags.FLAGS.logical_devices:
            distribute.set_cpu_devices(flags.FLAGS.logical_devices)
        # Several workers have to find each other before data are read.
        distribute.strategy(wanted.strategy, worker_timeout=flags.FLAGS.worker_timeout)
        result = train(wanted)
        others = "".join(
            f", {name.removesuffix('_accuracy')} {value:.4f}"
            for name, value in result.items()
            if name.endswith("_accuracy") and name not in ("test_accuracy", "last_accuracy", "best_accuracy")
        )
        print(f"test accuracy {result['test_accuracy']:.4f}{others}: {flags.FLAGS.out}/result.json")

    settings.define_flags(kind=kind)
    start(run)
