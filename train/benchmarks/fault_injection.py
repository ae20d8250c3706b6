"""A real run of `cifar100.py` in processes of its own, to which faults are done, and the comparison of two runs."""

import dataclasses
import math
import os
import pathlib
import random
import signal
import subprocess
import time

import keras

from keras_wsl import data
from keras_wsl.training import artifacts
from keras_wsl.training.config import Config
from reproduction import launcher

TIMEOUT = 1200  # Seconds within which a process has to reach the state that is waited for.
VOLATILE = (
    "seconds",
    "commit",
    "peak_memory_mib",
    "data_source",
)  # Entries of result.json that differ between equal runs.


@dataclasses.dataclass(frozen=True)
class RunUnderTest:
    """A run in processes of its own, one after the other.

    Args:
        out: Path of the run's folder.
        settings: `Config`.
        data_dir: See `cifar100.py`.
        steps_per_epoch: Integer.
        log_dir: Path of the folder for the output of the processes; not the run's own, whose disk may be full.
        flags: Tuple of further flags of the command line, such as `--flag=value`.
    """

    out: pathlib.Path
    config: Config
    data_dir: str
    steps_per_epoch: int
    log_dir: pathlib.Path
    flags: tuple = ()

    def named(self, name, **changes):
        """Return the same run in the folder `name` beside this one, with these fields changed."""
        return dataclasses.replace(self, out=self.out.with_name(name), **changes)

    def with_settings(self, **changes):
        """Return the same run with these settings changed."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    @property
    def backups(self):
        """Folder of the run's backups."""
        return self.out / "backups"

    @property
    def total_steps(self):
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def saved_steps(self):
        """Return the steps after which the newest backup was saved, and -1 if there is none."""
        names = sorted(path.stem.split("-") for path in self.backups.glob("*.backup"))
        return int(names[-1][0]) * self.steps_per_epoch + int(names[-1][1]) if names else -1

    def unfinished_backups(self):
        """Return the paths of backups that are being written, or whose write was interrupted."""
        return {path for path in self.backups.glob("*.backup*") if path.suffix != ".backup"}

    def command(self):
        """Return the command line that starts or resumes the run."""
        return [*launcher.command(self.out, self.config, self.data_dir), *self.flags]

    def start(self, **environment):
        """Start or resume the run, and return the process, which prints into `log`.

        Args:
            **environment: Environment variables.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as file:
            return subprocess.Popen(
                self.command(),
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self):
        """Path of the output of the last process."""
        return self.log_dir / f"{self.out.name}.log"

    def last_line(self):
        """Return the last line that the last process printed."""
        return last_line(self.log)

    def resume(self, **environment):
        """Start or resume the run, and wait for its end.

        Raises:
            RuntimeError: If it fails, with its output.
        """
        if status := self.start(**environment).wait(TIMEOUT):
            raise RuntimeError(f"{self.out} ended with status {status}:\n{self.log.read_text()[-3000:]}")


def last_line(path):
    """Return the last line of a file, without space around it."""
    return (path.read_text().strip().splitlines() or [""])[-1]


def prepare(folder, *, epochs=3, backup_every_steps=2):
    """Write the digits to a file, and train a teacher and an undisturbed run: ResNet-8 to ResNet-8 by WSL.

    Args:
        folder: Path of the folder for all of it; what is finished there is kept.
        epochs: Integer, of the student.
        backup_every_steps: Integer, steps between backups.

    Returns:
        The undisturbed `RunUnderTest`.
    """
    folder = pathlib.Path(folder)
    digits, path = data.digits(), folder / "digits.npz"
    if not path.exists():
        data.save_npz(digits, path)
    plain = Config(student="resnet8", method="none", epochs=1, decay_epochs=())
    launcher.train_all({folder / "teacher": plain}, path)
    config = dataclasses.replace(
        plain,
        method="wsl",
        teacher="resnet8",
        teacher_weights=str(folder / "teacher" / "student.keras"),
        epochs=epochs,
        decay_epochs=(epochs - 1,),
        backup_every_steps=backup_every_steps,
    )
    steps = digits.train.steps_per_epoch(config.batch_size)
    whole = RunUnderTest(folder / "whole", config, str(path), steps, folder / "logs")
    launcher.train_all({whole.out: config}, path)
    return whole


def differences(one, other, *, logs=0.0):
    """Compare two finished runs of the same settings to the bit.

    Compared are the weights of `student.keras`, the tables of the epochs' logs and counts, and `result.json` with the
    best score, except for its seconds, memory, commit and the place of the data.

    Args:
        one: Folder of a run.
        other: Folder of another.
        logs: Float, the relative difference that numbers in the tables may have.

    Returns:
        List of the names of what differs.
    """
    one, other = pathlib.Path(one), pathlib.Path(other)
    weights = [keras.saving.load_model(out / "student.keras", compile=False).get_weights() for out in (one, other)]
    # Bytes, so that a NaN is equal to itself, and 0.0 is not -0.0.
    alike = [[(array.dtype, array.shape, array.tobytes()) for array in arrays] for arrays in weights]
    found = [] if alike[0] == alike[1] else ["student.keras"]
    tables = sorted({path.relative_to(out) for out in (one, other) for path in out.rglob("*.csv")})
    found += [str(table) for table in tables if not _same_table(one / table, other / table, logs)]
    results = [artifacts.read_result(out) for out in (one, other)]
    keys = {key for result in results for key in result} - set(VOLATILE)
    return found + sorted(f"result.json: {key}" for key in keys if results[0].get(key) != results[1].get(key))


def _same_table(one, other, within):
    if not (one.exists() and other.exists()):
        return False
    if not within or one.read_bytes() == other.read_bytes():
        return one.read_bytes() == other.read_bytes()
    rows, others = (artifacts.read_csv(path) for path in (one, other))
    return len(rows) == len(others) and all(
        a.keys() == b.keys() and all(math.isclose(a[name], b[name], rel_tol=within) for name in a)
        for a, b in zip(rows, others)
    )


def leftovers(whole, out):
    """Return the names of a finished run's files that an undisturbed run does not have, such as temporary files."""
    return sorted(names(out) - names(whole))


def names(folder):
    """Return the names of all files of a run, without backups and events files.

    How many events files there are, and which backups, depends on when the run was interrupted.
    """
    files = (path for path in folder.rglob("*") if path.suffix != ".backup" and "events" not in path.name)
    return {str(path.relative_to(folder)) for path in files}


def wait_until(condition, process):
    """Wait until `condition()` holds, and return False if the process ended before.

    Raises:
        TimeoutError: If neither happened in time. The process is then killed.
    """
    end = time.monotonic() + TIMEOUT
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"Process {process.pid} did not reach the expected state within {TIMEOUT} s.")
        time.sleep(0.0005)
    return False


def during_backup_write(run, process, generator):
    """Wait for a backup's write after a random step, and stop the process inside it; False if there was none."""
    after, orphans = generator.randrange(run.total_steps), run.unfinished_backups()

    def writing():
        return run.saved_steps() >= after and run.unfinished_backups() - orphans

    def caught():
        if not writing():
            return False
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if writing():  # The process is stopped in the write.
            return True
        process.send_signal(signal.SIGCONT)
        return False

    return wait_until(caught, process)


def at_random_step(run, process, generator):
    """Wait for a random one of the steps that are left, and for up to a tenth of a second more."""
    if run.saved_steps() >= run.total_steps:  # An earlier process was killed during the writing of the results.
        return False
    step = generator.randrange(max(run.saved_steps(), 0), run.total_steps)
    if not wait_until(lambda: run.saved_steps() >= step, process):
        return False
    time.sleep(generator.random() / 10)
    return process.poll() is None


def at_random_second(run, process, generator, longest=30):
    """Wait for a random part of `longest` seconds: the run may start, build its networks, train, or end."""
    time.sleep(longest * generator.random())
    return process.poll() is None


def while_writing_results(run, process, generator):
    """Wait until training has ended, and for up to two seconds more, in which the results are written."""
    if not wait_until(lambda: run.saved_steps() >= run.total_steps, process):
        return False
    time.sleep(2 * generator.random())
    return process.poll() is None


def interrupt(run, moment, generator, signals=(signal.SIGKILL,)):
    """Start or resume a run, and send it signals at a moment.

    Args:
        run: `RunUnderTest`.
        moment: One of the functions above, of the run, its process and a generator.
        generator: `random.Random`.
        signals: The signals, a second apart.

    Returns:
        `None` if the run ended before the moment; else a dict of `saved`, the steps in the newest backup, `status`, the
        exit status, and `seconds` from the last signal to the end.
    """
    process = run.start()
    try:
        if not moment(run, process, generator):
            return None
        for number in signals[:-1]:
            process.send_signal(number)
            time.sleep(1)
        sent = time.monotonic()
        process.send_signal(signals[-1])
        status = process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return {"saved": run.saved_steps(), "status": status, "seconds": time.monotonic() - sent}


def killed_runs(new_run, moment, times, *, seed, most=3):
    """Kill runs at a moment, each up to `most` times, and resume them to their end.

    Args:
        new_run: Function of a name that returns a `RunUnderTest`.
        moment: Same as in `interrupt`.
        times: Integer, how often in all.
        seed: Integer.
        most: Integer.

    Yields:
        `(kills, run)`: how often a run was killed, and the finished `RunUnderTest`.

    Raises:
        RuntimeError: If runs end before the moment too often.
    """
    generator, left = random.Random(f"{seed} {moment.__name__}"), times
    for number in range(4 * times):
        run, kills, wanted = new_run(f"killed-{number}"), 0, generator.randint(1, min(most, left))
        while kills < wanted and interrupt(run, moment, generator):
            kills += 1
        if not (run.out / "result.json").exists():
            run.resume()
        left -= kills
        yield kills, run
        if not left:
            return
    raise RuntimeError(f"Runs ended before the moment {moment.__name__}, which was needed {left} more times.")
