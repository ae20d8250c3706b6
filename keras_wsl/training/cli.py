"""Command lines: errors in one line, exit statuses, and the script that trains one network."""

import signal
import sys

from absl import app, flags, logging

from keras_wsl import callbacks, distribution
from keras_wsl.training import config
from keras_wsl.training.cli_help import print_help, wants_help


def status(work):
    """Call a function, and print one line if an error or a signal ended it.

    Args:
        work: Function without arguments.

    Returns:
        The exit status: what `work()` returns, 0 for `None`; 2 after an error that a user can correct; 128 plus the
        number of the signal that ended it, such as 130 after Ctrl-C.
    """
    logging.set_verbosity(logging.WARNING)  # TensorFlow logs each function of a SavedModel.
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
    """Return a text in one line: line feeds become spaces, and other unprintable characters are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text.replace("\n", " "))


def start(work, *arguments, config_class=None):
    """Run a script, and end the process with its `status`.

    Args:
        work: Function of the positional arguments of the command line.
        *arguments: Names of the positional arguments, for the help text and errors.
        config_class: Class of the script's settings, or `None`. `--help` then shows a method's published defaults.
    """

    def main(argv):
        if len(argv) - 1 != len(arguments):
            print(
                f"Expected {' and '.join(arguments) or 'flags only'}. Received: {argv[1:]}. See --help.",
                file=sys.stderr,
            )
            return 1
        return status(lambda: work(*argv[1:]))

    run(main, *arguments, config_class=config_class)


def run(main, *arguments, config_class=None):
    """Parse the command line, call a function of the rest of it, and end the process.

    Args:
        main: Function of a list: the path of the script and the positional arguments.
        *arguments: Names of the positional arguments, for the help text.
        config_class: See `start`.
    """

    def parse(argv):
        if wants_help(argv):
            print_help(argv, config_class=config_class, arguments=arguments)
            sys.exit(0)
        parsed = []
        if code := status(lambda: parsed.extend(_parse(argv))):
            sys.exit(code)
        return parsed

    app.run(main, flags_parser=parse)


def _parse(argv):
    """Parse flags, after a check that flagfiles are text."""
    for argument, following in zip(argv, [*argv[1:], ""]):
        name, equals, path = argument.partition("=")
        if name.lstrip("-") == "flagfile" and (path := path if equals else following):
            config.read_text(path)
    return app.parse_flags_with_usage(argv)


def main(train, config_class):
    """Run a script that trains one network: define the flags, parse them, train, and print the accuracy.

    The process ends with status 2 and one line after an error that a user can correct.

    Args:
        train: Function of the settings that calls `run` and returns its result.
        config_class: `Config` or a subclass.
    """

    def train_one():
        settings = config.from_flags(flags.FLAGS, config_class)
        if flags.FLAGS.logical_devices:
            distribution.set_cpu_devices(flags.FLAGS.logical_devices)
        # Workers must find each other before data are read.
        distribution.get_strategy(settings.strategy, worker_timeout=flags.FLAGS.worker_timeout)
        result = train(settings)
        others = "".join(
            f", {name.removesuffix('_accuracy')} {value:.4f}"
            for name, value in result.items()
            if name.endswith("_accuracy") and name not in ("test_accuracy", "final_accuracy", "best_accuracy")
        )
        print(f"test accuracy {result['test_accuracy']:.4f}{others}: {flags.FLAGS.output_dir}/result.json")

    config.define_flags(config_class=config_class)
    start(train_one, config_class=config_class)
