"""Run one of the workers of TF_CONFIG and write its results: `python -m tests.multi_worker_child PATH KIND`."""

import json
import os
import pathlib
import re
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_wsl import distribution
from tests import mirrored_child


def _caught_signals():
    """The numbers of the signals for which this process has a handler, of Python or not."""
    status = pathlib.Path("/proc/self/status").read_text()
    mask = int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16)
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


def main(path, kind):
    """Trains a kind of `mirrored_child`, and disagrees once with the other workers."""
    strategy = distribution.get_strategy("multi_worker")
    distribution.check_workers_agree("multi_worker", "numbers", [1, 2])
    result = {"chief": distribution.is_chief("multi_worker"), "caught": _caught_signals()}
    result |= mirrored_child.train(strategy, kind, afterwards=True)
    try:
        distribution.check_workers_agree("multi_worker", "places", [strategy.cluster_resolver.task_id])
    except ValueError as error:
        result["disagreement"] = str(error)
    pathlib.Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
