"""Train several runs in processes of their own, and compute the logits of finished ones.

Finished runs are not trained again; runs that were stopped are resumed.
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
from keras_wsl.training import artifacts
from keras_wsl.training.config import Config, ImageNetConfig, MultiNLIConfig, read, to_lines
from keras_wsl.training.config import define_flags as define_run_flags
from keras_wsl.training.inputs import split_dataset

TRAIN = pathlib.Path(__file__).parents[1]  # The directory of the scripts.
DIGITS = "digits"
SCRIPTS = {Config: "cifar100.py", ImageNetConfig: "imagenet.py", MultiNLIConfig: "multinli.py"}
# Several processes can share an accelerator's memory only if none allocates all of it.
SHARED_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
PROCESSES_PER_ACCELERATOR = 8  # Small networks do not use all of it.


def define_flags(files, *, jobs=2, data_dir=None, flag_values=flags.FLAGS):
    """Define the flags of a study that trains several runs: those of a run, `--jobs`, `--data_dir` and `--results`.

    Args:
        files: Description of the files that it writes, for the help.
        jobs: Integer, default of `--jobs`.
        data_dir: Default of `--data_dir`; `None` if it is required.
        flag_values: The `absl.flags.FlagValues` in which they are defined.
    """
    own = {"flag_values": flag_values}
    define_run_flags(**own)
    flags.DEFINE_integer("jobs", jobs, "Number of processes.", lower_bound=1, **own)
    text = "See cifar100.py; or digits, those of scikit-learn."
    flags.DEFINE_string("data_dir", data_dir, text, required=data_dir is None, **own)
    flags.DEFINE_string("results", str(TRAIN / "results"), f"Directory of {files}.", **own)


class TeacherStudentLogits(NamedTuple):
    """The logits of a finished run's student and of its teacher.

    Args:
        config: `Config` of the run.
        examples: `data.ImageArrays`.
        student_logits: float32, shape `(examples, classes)`.
        teacher_logits: Likewise.
    """

    config: Config
    examples: data.ImageArrays
    student_logits: np.ndarray
    teacher_logits: np.ndarray


def command(out, config, data_dir):
    """Return the command line of one run, which resumes a run in its directory.

    Args:
        out: Directory of the run.
        config: `Config`, whose class selects the script.
        data_dir: The data. See that script.
    """
    resume = ["--resume"] if (out / "run.flags").exists() else []
    lines = [*to_lines(config), f"--data_dir={data_dir}", f"--output_dir={out}", *resume]
    return [sys.executable, str(TRAIN / SCRIPTS[type(config)]), *lines]


def train(runs, data_dir, *, jobs=1, after=None):
    """Train the runs that are not finished. If one fails, print its error and train the others.

    Args:
        runs: Dict of each run's directory to its `Config`.
        data_dir: The data. See the script of the runs.
        jobs: Integer, number of processes.
        after: Function that is called with the directory of each run that was trained, one at a time; or `None`.

    Returns:
        The names of the runs that failed.

    Raises:
        ValueError: If a directory holds a run with other settings, before anything starts.
        PreemptedError: If SIGINT, SIGTERM or SIGHUP was received; the runs have saved their states and ended.
        KeyboardInterrupt: If SIGINT was received twice; the runs were killed.
    """
    runs = {pathlib.Path(out): config for out, config in runs.items()}
    for out, config in runs.items():
        if (out / "run.flags").exists():
            artifacts.open_run_directory(out, config, resume=True)
    lock, free_cores = threading.Lock(), queue.SimpleQueue()
    for cores in partition_cores(min(jobs, sum(not (out / "result.json").exists() for out in runs))):
        free_cores.put(cores)

    def train_one(out, config):
        trained = _train_one(out, config, data_dir, jobs, preemption, free_cores)
        if trained and after:
            with lock:
                after(out)
        return (out / "result.json").exists()

    with PreemptionHandler() as preemption, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train_one, *run) for run in runs.items()]
        try:
            finished = [future.result() for future in futures]
        except BaseException:  # Such as a second Ctrl-C.
            preemption.requested = True  # Runs that have not started are not started.
            raise
    if preemption.requested:
        raise PreemptedError(
            f"{preemption.name} was received. The runs that were training have saved their states.", preemption.number
        )
    return [out.name for out, is_finished in zip(runs, finished) if not is_finished]


def train_all(runs, data_dir, *, jobs=1):
    """Train runs that are all needed. See `train`.

    Raises:
        ValueError: If a run failed, or a directory holds a run with other settings.
    """
    if failed := train(runs, data_dir, jobs=jobs):
        raise ValueError(
            f"{', '.join(failed)} failed with the errors above. Correct them and start again; finished runs are kept."
        )


def _train_one(out, config, data_dir, jobs, preemption, free_cores):
    """Train a run unless it is finished, and return whether it was trained to its end."""
    if preemption.requested or (out / "result.json").exists():
        return False
    arguments = command(out, config, data_dir)
    make_directory(out.parent)
    cores = free_cores.get()
    try:
        status, errors = call(
            arguments, {**(SHARED_MEMORY if jobs > 1 else {}), **os.environ}, preemption, cores, out.parent
        )
    finally:
        free_cores.put(cores)
    if status:
        if not preemption.requested:
            print(f"{out.name} failed: {' '.join(arguments)}\n{errors}", file=sys.stderr, flush=True)
        return False
    result = artifacts.read_result(out, "test_accuracy", "seconds")
    print(f"{out.name}: {result['test_accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    return True


def call(arguments, environment, preemption, cores=None, directory=None):
    """Run a command, and end it if this process is preempted: by SIGTERM, or by SIGKILL after a second SIGINT.

    Args:
        arguments: List of strings.
        environment: Dict of environment variables.
        preemption: `PreemptionHandler` of this process.
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
            while process.poll() is None and not preemption.repeated:
                if preemption.requested:
                    process.terminate()  # Again, as it may not have been ready for the first one.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            process.kill()  # Does nothing if it has ended.
            process.wait()
        errors.seek(0)
        return process.returncode, errors.read()


def partition_cores(jobs):
    """Divide the cores among several processes: a list of sets, or of `None` for all cores.

    Networks that share no core are faster, because each starts as many threads as it has cores. Processes are not bound
    to cores if there is an accelerator, if there are more processes than cores, or if the system cannot do it.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if jobs < 2 or jobs > len(cores) or _has_accelerator():
        return [None] * jobs
    return [set(cores[start::jobs]) for start in range(jobs)]


def default_parallelism():
    """Return how many small networks to train at once: one per core, or several on an accelerator."""
    return PROCESSES_PER_ACCELERATOR if _has_accelerator() else os.cpu_count() or 1


def _has_accelerator():
    return shutil.which("nvidia-smi") is not None


def prepare_data(data_dir, directory):
    """Return `data_dir` as the scripts read it: `"digits"` are written to a file in a directory."""
    if data_dir != DIGITS:
        return data_dir
    path = pathlib.Path(directory) / "digits.npz"
    if not path.exists():
        data.save_npz(data.digits(), path)
    return path


def load_splits(data_dir):
    """Return the `data.Splits` of a directory or file that cifar100.py reads, or of `"digits"`."""
    return data.digits() if data_dir == DIGITS else data.cifar100(data_dir)


def read_config(directory):
    """Return the `Config` of a finished run.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    directory = pathlib.Path(directory)
    if not (directory / "result.json").exists():
        raise FileNotFoundError(f"{directory} holds no finished run: there is no result.json. Continue it by --resume.")
    return read(directory / "run.flags")


def load_logits(directory, splits, split="train"):
    """Return the `TeacherStudentLogits` of a finished run.

    Args:
        directory: Directory of the run.
        splits: `data.Splits` of the run.
        split: `"train"`, the examples that it was trained on, without crops and flips; or `"test"`.

    Raises:
        FileNotFoundError: If there is no finished run, or no file of the teacher's weights.
        ValueError: If the run has no teacher.
    """
    config = read_config(directory)
    if not config.teacher:
        raise ValueError(f"{directory} has no teacher: --method={config.method}. Choose a run with a teacher.")
    examples = splits.test if split == "test" else split_dataset(splits, config)[0]
    options = {"classes": len(examples.classes), "input_shape": examples.input_shape}
    teacher = models.build(config.teacher, weights=config.teacher_weights, **options)
    student = read_network(pathlib.Path(directory, "student.keras"))
    return TeacherStudentLogits(
        config, examples, *(compute_logits(model, examples, config.eval_batch_size) for model in (student, teacher))
    )


def compute_logits(model, examples, batch_size):
    """Return a network's logits of examples: float32, shape `(examples, classes)`."""
    # Not `predict_on_batch`, which would compile each network, and there may be dozens.
    batches = data.eval_batches(examples, batch_size, pipeline="numpy")
    rows = [keras.ops.convert_to_numpy(model(inputs, training=False)) for inputs, _ in batches]
    return np.concatenate(rows).astype("float32")
