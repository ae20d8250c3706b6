"""Several runs: trained in processes of their own, and asked for their logits when finished.

Finished runs are kept, others start or go on.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import keras
import numpy as np
from absl import flags

from keras_wsl import data, models
from keras_wsl.callbacks import PreemptedError, PreemptionHandler
from keras_wsl.files import make_directory
from keras_wsl.models.weights import read_network
from keras_wsl.training import artifacts, config, inputs

HERE = pathlib.Path(__file__).parent
DIGITS = "digits"
SCRIPTS = {config.Config: "cifar100.py", config.ImageNetConfig: "imagenet.py", config.MultiNLIConfig: "multinli.py"}
# Several processes share an accelerator's memory only if none takes all of it.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
AT_ONCE = 8  # Processes on one accelerator, which small networks leave idle.


def define_flags(files, *, at_once=2, data_dir=None, flag_values=flags.FLAGS):
    """Defines the flags of a script that trains several runs: those of a run, `--jobs`, `--data_dir` and `--results`.

    Args:
        files: What the script's files are called, for the help.
        at_once: Integer, `--jobs` by default.
        data_dir: Likewise; `None` if it has to be given.
        flag_values: Where they are defined.
    """
    own = {"flag_values": flag_values}
    config.define_flags(**own)
    flags.DEFINE_integer("jobs", at_once, "Runs at a time.", lower_bound=1, **own)
    text = "As of cifar100.py; digits for those of scikit-learn."
    flags.DEFINE_string("data_dir", data_dir, text, required=data_dir is None, **own)
    flags.DEFINE_string("results", str(HERE / "results"), f"Folder of {files}.", **own)


class Pair(NamedTuple):
    """What a finished run's student and its teacher say of examples: `config`, `examples`, and two arrays of logits.

    The logits are float32, shape `(examples, classes)`.
    """

    config: config.Config
    examples: data.ImageArrays
    student_logits: np.ndarray
    teacher_logits: np.ndarray


def command(out, wanted, data_dir):
    """The command line of one run, which goes on with what is in its folder.

    Args:
        out: Folder of the run.
        wanted: `Config`, whose kind says which script it is.
        data_dir: As of that script.
    """
    resume = ["--resume"] if (out / "run.flags").exists() else []
    lines = [*config.to_lines(wanted), f"--data_dir={data_dir}", f"--output_dir={out}", *resume]
    return [sys.executable, str(HERE / SCRIPTS[type(wanted)]), *lines]


def train(runs, data_dir, *, jobs=1, after=None):
    """Trains what is not finished; a run that fails says so, and the others go on.

    Args:
        runs: Dict of each run's folder to its `Config`.
        data_dir: As of their script.
        jobs: Integer, processes at a time.
        after: Called with the folder of each run that was trained, one after the other; or `None`.

    Returns:
        The names of the runs that failed.

    Raises:
        ValueError: A folder holds a run of other settings; before anything starts.
        PreemptedError: SIGINT, SIGTERM or SIGHUP was received; the runs have saved their states and ended.
        KeyboardInterrupt: SIGINT was received twice; the runs were killed.
    """
    runs = {pathlib.Path(out): wanted for out, wanted in runs.items()}
    for out, wanted in runs.items():
        if (out / "run.flags").exists():
            artifacts.open_run_directory(out, wanted, resume=True)
    turn, shares = threading.Lock(), queue.SimpleQueue()
    for cores in shares_of_cores(min(jobs, sum(not (out / "result.json").exists() for out in runs))):
        shares.put(cores)

    def train_one(out, wanted):
        trained = _train_one(out, wanted, data_dir, jobs, termination, shares)
        if trained and after:
            with turn:
                after(out)
        return (out / "result.json").exists()

    with PreemptionHandler() as termination, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(train_one, *run) for run in runs.items()]
        try:
            done = [one.result() for one in started]
        except BaseException:  # Such as a second Ctrl-C.
            termination.requested = True  # What has not started does not start any more.
            raise
    if termination.requested:
        raise PreemptedError(
            f"{termination.name} was received. The runs that were training have saved their states.", termination.number
        )
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


def _train_one(out, wanted, data_dir, jobs, termination, shares):
    """Runs one unless it is finished; returns whether it was trained to its end."""
    if termination.requested or (out / "result.json").exists():
        return False
    arguments = command(out, wanted, data_dir)
    make_directory(out.parent)
    cores = shares.get()
    try:
        status, errors = call(arguments, {**(SHARED if jobs > 1 else {}), **os.environ}, termination, cores, out.parent)
    finally:
        shares.put(cores)
    if status:
        if not termination.requested:
            print(f"{out.name} failed: {' '.join(arguments)}\n{errors}", file=sys.stderr, flush=True)
        return False
    result = artifacts.read_result(out, "test_accuracy", "seconds")
    print(f"{out.name}: {result['test_accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    return True


def call(arguments, environment, termination, cores=None, directory=None):
    """Run a command, and end it when this process is asked to end: SIGTERM, or SIGKILL after a second SIGINT.

    Args:
        arguments: List of strings.
        environment: Dict of environment variables.
        termination: `PreemptionHandler` of this process.
        cores: Set of the cores that it may use, or `None` for all.
        directory: Path of a directory that has room for what it prints; by default the system's temporary one.

    Returns:
        Its exit status, and what it printed to standard error.
    """
    with tempfile.TemporaryFile("w+", dir=directory) as errors:
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            if cores:
                with contextlib.suppress(ProcessLookupError):  # It has ended already.
                    os.sched_setaffinity(process.pid, cores)
            while process.poll() is None and not termination.repeated:
                if termination.requested:
                    process.terminate()  # Again, as it may not have been ready for the first one.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            process.kill()  # Does nothing if it has ended.
            process.wait()
        errors.seek(0)
        return process.returncode, errors.read()


def shares_of_cores(jobs):
    """What each of several processes has of this one's cores: a list of sets, or of `None` for all of them.

    Networks that share no core are quicker: each starts as many threads as it has cores. Where an accelerator does
    the work, where there are more processes than cores, and on systems without the call, none is bound.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if jobs < 2 or jobs > len(cores) or _has_accelerator():
        return [None] * jobs
    return [set(cores[share::jobs]) for share in range(jobs)]


def room():
    """How many small networks are trained at once: one a core, or several on an accelerator."""
    return AT_ONCE if _has_accelerator() else os.cpu_count() or 1


def _has_accelerator():
    return shutil.which("nvidia-smi") is not None


def file_of(data_dir, folder):
    """The data as a script of its own finds them: `"digits"` are written to a file in a folder."""
    if data_dir != DIGITS:
        return data_dir
    path = pathlib.Path(folder) / "digits.npz"
    if not path.exists():
        data.save_npz(data.digits(), path)
    return path


def splits_of(data_dir):
    """`data.Splits` of a folder or file as of cifar100.py, or of `"digits"`."""
    return data.digits() if data_dir == DIGITS else data.cifar100(data_dir)


def argument_names(folder):
    """The `Config` of a finished run.

    Raises:
        FileNotFoundError: There is no finished run.
    """
    folder = pathlib.Path(folder)
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no result.json. Go on with it by --resume.")
    return config.read(folder / "run.flags")


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
    wanted = argument_names(folder)
    if not wanted.teacher:
        raise ValueError(f"{folder} has no teacher: --method={wanted.method}. Choose a run of a student with one.")
    examples = splits.test if split == "test" else inputs.split_dataset(splits, wanted)[0]
    options = {"classes": len(examples.classes), "input_shape": examples.input_shape}
    teacher = models.build(wanted.teacher, weights=wanted.teacher_weights, **options)
    student = read_network(pathlib.Path(folder, "student.keras"))
    return Pair(wanted, examples, *(logits(model, examples, wanted.eval_batch_size) for model in (student, teacher)))


def logits(model, examples, batch_size):
    """What a network says of examples: float32, shape `(examples, classes)`."""
    # Not `predict_on_batch`: it would compile each network, and there may be dozens.
    batches = data.eval_batches(examples, batch_size, pipeline="numpy")
    rows = [keras.ops.convert_to_numpy(model(inputs, training=False)) for inputs, _ in batches]
    return np.concatenate(rows).astype("float32")
