"""What has to be set before TensorFlow is imported: what trains imports this first."""

import os
import sys

# oneDNN's convolutions. On some processors TensorFlow leaves them out, and a step takes a third to a half longer.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

INTERRUPTED = "Interrupted by SIGINT. Files that were written before are complete."


def _excepthook(kind, error, traceback):
    """Print one line in place of a traceback if Ctrl-C is pressed while packages are imported."""
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
