"""The frame of the scripts: errors that a user can mend, and, of those that train one network, flags and last line."""

import sys

from absl import app, flags, logging

import settings
from keras_wsl import callbacks


def status(work):
    """The exit status of a script: 0 after `work()`, or 2 and one line after an error of the user's."""
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every function that it saves.
    try:
        work()
    except (ValueError, FileNotFoundError, MemoryError, callbacks.NonFiniteLoss) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def main(train, kind):
    """Runs a script.

    Args:
        train: Function of the settings that runs and returns the content of `result.json`.
        kind: The class of its settings.

    Ends the process with status 2 and one line after an error of the user's.
    """

    def run():
        result = train(settings.from_flags(flags.FLAGS, kind))
        others = "".join(
            f", {name.removesuffix('_accuracy')} {value:.4f}"
            for name, value in result.items()
            if name.endswith("_accuracy") and name not in ("test_accuracy", "last_accuracy", "best_accuracy")
        )
        print(f"test accuracy {result['test_accuracy']:.4f}{others}: {flags.FLAGS.out}/result.json")

    def without_arguments(argv):
        if argv[1:]:
            raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
        return status(run)

    settings.define_flags(kind=kind)
    app.run(without_arguments)
