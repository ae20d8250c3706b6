"""Settings that must be made before TensorFlow is imported. Every script imports this module first."""

import os
import sys

# Use oneDNN's convolutions. On some processors TensorFlow does not by default, and a step takes up to 50 % longer.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _excepthook(kind, error, traceback):
    """Print one line in place of a traceback if Ctrl-C is pressed while packages are imported."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted by SIGINT. Nothing has been written.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
