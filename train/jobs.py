"""Several runs of `cifar100.py`: trained in processes of their own, and asked for their logits when finished.

Finished runs are kept, others start or go on.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np
from absl import flags

import record
import settings
import trainer
from keras_wsl import data, models
from keras_wsl.models.weights import read_network

HERE = pathlib.Path(__file__).parent
DIGITS = "digits"


class Pair(NamedTuple):
    """What a finished run's student and its teacher say of examples: `settings`, `examples`, and two arrays of logits.

    The logits are float32, shape `(examples, classes)`.
    """

    settings: settings.Settings
    examples: data.Examples
    student_logits: np.ndarray
    teacher_logits: np.ndarray


def command(out, wanted, data_dir):
    """The command line of one run, which goes on with what is in its folder.

    Args:
        out: Folder of the run.
        wanted: `Settings`.
        data_dir: As of cifar100.py.
    """
    resume = ["--resume"] if (out / "run.flags").exists() else []
    lines = [*settings.to_lines(wanted), f"--data_dir={data_dir}", f"--out={out}", *resume]
    return [sys.executable, str(HERE / "cifar100.py"), *lines]


def train(runs, data_dir, *, jobs=1):
    """Trains what is not finished; a run that fails says so, and the others go on.

    Args:
        runs: Dict of each run's folder to its `Settings`.
        data_dir: As of cifar100.py.
        jobs: Integer, processes at a time.

    Returns:
        The names of the runs that failed.

    Raises:
        ValueError: A folder holds a run of other settings; before anything starts.
    """
    runs = {pathlib.Path(out): wanted for out, wanted in runs.items()}
    for out, wanted in runs.items():
        # Compared as settings: a run may be older than some of the flags, which then have their defaults.
        if (out / "run.flags").exists() and _read(out / "run.flags") != wanted:
            record.open_run(out, wanted, resume=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda run: _train_one(*run, data_dir), runs.items()))
    return [out.name for out, one in zip(runs, done) if not one]


def train_all(runs, data_dir, *, jobs=1):
    """As `train`, for runs all of which are needed.

    Raises:
        ValueError: A run failed, or a folder holds a run of other settings.
    """
    if failed := train(runs, data_dir, jobs=jobs):
        raise ValueError(
            f"{', '.join(failed)} failed, as said above. Mend that and start again: finished runs are kept."
        )


def _train_one(out, wanted, data_dir):
    """Runs one unless it is finished; returns whether it is now."""
    if (out / "result.json").exists():
        return True
    arguments = command(out, wanted, data_dir)
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        print(f"{out.name} failed: {' '.join(arguments)}\n{done.stderr}", file=sys.stderr, flush=True)
        return False
    result = json.loads((out / "result.json").read_text())
    print(f"{out.name}: {result['test_accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    return True


def splits_of(data_dir):
    """`data.Splits` of a folder or file as of cifar100.py, or of `"digits"`."""
    return data.digits() if data_dir == DIGITS else data.cifar100(data_dir)


def settings_of(folder):
    """The `Settings` of a finished run.

    Raises:
        FileNotFoundError: There is no finished run.
    """
    folder = pathlib.Path(folder)
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no result.json. Go on with it by --resume.")
    return _read(folder / "run.flags")


def _read(path):
    """The `Settings` of a `run.flags`."""
    values = flags.FlagValues()
    settings.define_flags(values)
    values(["run", *path.read_text().splitlines()])
    return settings.from_flags(values)


def pair(folder, splits, split="train"):
    """Asks the networks of a finished run, whose teacher's weights are where they were.

    Args:
        folder: Folder of the run.
        splits: `data.Splits` of the run.
        split: `"train"`, the examples that it was trained on, without crops and flips; or `"test"`.

    Raises:
        FileNotFoundError: There is no finished run, or no file of the teacher's weights.
        ValueError: The run has no teacher.
    """
    wanted = settings_of(folder)
    if not wanted.teacher:
        raise ValueError(f"{folder} has no teacher: --method={wanted.method}. Choose a run of a student with one.")
    examples = splits.test if split == "test" else trainer.parts(splits, wanted)[0]
    options = {"classes": len(examples.classes), "input_shape": examples.input_shape}
    teacher = models.build(wanted.teacher, weights=wanted.teacher_weights, **options)
    student = read_network(pathlib.Path(folder, "student.keras"))
    return Pair(wanted, examples, *(logits(model, examples, wanted.judged_at_once) for model in (student, teacher)))


def logits(model, examples, batch_size):
    """What a network says of examples: float32, shape `(examples, classes)`."""
    # Not `predict_on_batch`: it would compile each network, and there may be dozens.
    batches = data.eval_batches(examples, batch_size, framework="numpy")
    rows = [keras.ops.convert_to_numpy(model(inputs, training=False)) for inputs, _ in batches]
    return np.concatenate(rows).astype("float32")
