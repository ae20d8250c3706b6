"""The frame of the scripts: errors that a user can mend, and, of those that train one network, flags and last line."""

import pathlib
import signal
import sys

from absl import app, flags, logging

from keras_wsl import callbacks, distribution
from keras_wsl.training import config


def status(work):
    """Run a script, and print one line if an error or a signal ended it.

    Args:
        work: Function without arguments.

    Returns:
        The exit status: what `work()` returns, 0 for `None`; 2 after an error that a user can correct; 128 plus the
        number of the signal that ended it, such as 130 after Ctrl-C.
    """
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every function that it saves.
    try:
        return work() or 0
    except (ValueError, OSError, ImportError, MemoryError, callbacks.NonFiniteLossError) as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    except callbacks.PreemptedError as end:
        print(f"{end} Pass --resume.", file=sys.stderr)
        return end.status
    except KeyboardInterrupt:
        print("Interrupted by SIGINT. Files that were written before are complete.", file=sys.stderr)
        return 128 + signal.SIGINT


def one_line(text):
    """Return a text in one line: line feeds become spaces, and what a terminal would not print is escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text.replace("\n", " "))


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
    run(main)


def run(main):
    """Run a function of the arguments that are no flags, after a look at the flagfiles, and end the process."""

    def parse(arguments):
        parsed = []
        if code := status(lambda: parsed.extend(_parse(arguments))):
            sys.exit(code)
        return parsed

    app.run(main, flags_parser=parse)


def _parse(arguments):
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, equals, path = argument.partition("=")
        if name.lstrip("-") == "flagfile" and (path := path if equals else following):
            config.read_text(path)
    return app.parse_flags_with_usage(arguments)


def tell_of_all_flags(values):
    """Make `--help` also list the flags that this package and the other files beside the script define."""
    directories = {pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0]).resolve().parent}
    for name, defined in values.flags_by_module_dict().items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and directories & set(pathlib.Path(file).parents):
            for flag in defined:
                values.register_key_flag_for_module(sys.argv[0], flag)


def main(train, kind):
    """Runs a script that trains one network.

    Args:
        train: Function of the settings that runs and returns the content of `result.json`.
        kind: The class of its settings.

    Ends the process with status 2 and one line after an error of the user's.
    """

    def train_one():
        wanted = config.from_flags(flags.FLAGS, kind)
        if flags.FLAGS.logical_devices:
            distribution.set_cpu_devices(flags.FLAGS.logical_devices)
        # Several workers have to find each other before data are read.
        distribution.get_strategy(wanted.strategy, worker_timeout=flags.FLAGS.worker_timeout)
        result = train(wanted)
        others = "".join(
            f", {name.removesuffix('_accuracy')} {value:.4f}"
            for name, value in result.items()
            if name.endswith("_accuracy") and name not in ("test_accuracy", "final_accuracy", "best_accuracy")
        )
        print(f"test accuracy {result['test_accuracy']:.4f}{others}: {flags.FLAGS.output_dir}/result.json")

    config.define_flags(kind=kind)
    start(train_one)
