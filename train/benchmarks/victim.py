"""A real run of `cifar100.py` to which faults are done, beside one that is left alone."""

import dataclasses
import math
import os
import pathlib
import random
import signal
import subprocess
import time

import keras

import jobs
import record
from keras_wsl import data
from keras_wsl.files import remove_orphans
from settings import Settings

PATIENCE = 600  # Seconds within which a process has to come to where it is waited for.
LAST = ("seconds", "commit", "peak_memory_mib", "data_source")  # Of result.json: what differs between equal runs.


@dataclasses.dataclass(frozen=True)
class Victim:
    """A run in processes of its own, one after the other.

    Args:
        out: Folder of the run.
        wanted: `Settings`.
        data_dir: As of cifar100.py.
        steps: Steps of an epoch.
        prints: Folder for what the processes print; not the run's own, whose disk may be full.
    """

    out: pathlib.Path
    wanted: Settings
    data_dir: str
    steps: int
    prints: pathlib.Path

    @property
    def backups(self):
        """Folder of the run's backups."""
        return self.out / "backups"

    @property
    def all_steps(self):
        """Steps of the whole run."""
        return self.wanted.epochs * self.steps

    def saved(self):
        """Steps after which the newest backup was saved, and -1 where there is none."""
        names = sorted(path.stem.split("-") for path in self.backups.glob("*.backup"))
        return int(names[-1][0]) * self.steps + int(names[-1][1]) if names else -1

    def command(self):
        """The command line that starts the run, or goes on with it."""
        return jobs.command(self.out, self.wanted, self.data_dir)

    def start(self, **settings):
        """Starts the run, or goes on with it: a process, which prints into `printed`.

        Args:
            **settings: Environment variables.
        """
        self.prints.mkdir(parents=True, exist_ok=True)
        with open(self.printed, "w") as file:
            return subprocess.Popen(
                self.command(),
                env={**os.environ, **settings},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self):
        """File of what the last process printed."""
        return self.prints / f"{self.out.name}.printed"

    def last_line(self):
        """The last line that the last process printed."""
        return last_line(self.printed)

    def go_on(self):
        """Starts the run, or goes on with it, and waits for its end.

        Raises:
            RuntimeError: It did not end as it should; with what it printed.
        """
        if status := self.start().wait(PATIENCE):
            raise RuntimeError(f"{self.out} ended with status {status}:\n{self.printed.read_text()[-3000:]}")


def last_line(path):
    """The last line of a file, without space around it."""
    return (path.read_text().strip().splitlines() or [""])[-1]


def prepare(folder, *, epochs=3, backup_steps=2):
    """Digits in a file, a teacher, and a run that nothing disturbs: ResNet-8 by ResNet-8, WSL.

    Args:
        folder: Path of the folder for all of it; what is finished there is kept.
        epochs: Integer, of the student.
        backup_steps: Integer, steps between backups.

    Returns:
        The `Victim` that was left alone.
    """
    folder = pathlib.Path(folder)
    digits, path = data.digits(), folder / "digits.npz"
    data.save_npz(digits, path)
    plain = Settings(student="resnet8", method="none", epochs=1, decay_epochs=())
    jobs.train_all({folder / "teacher": plain}, path)
    wanted = dataclasses.replace(
        plain,
        method="wsl",
        teacher="resnet8",
        teacher_weights=str(folder / "teacher" / "student.keras"),
        epochs=epochs,
        decay_epochs=(epochs - 1,),
        backup_steps=backup_steps,
    )
    steps = digits.train.steps_per_epoch(wanted.batch_size)
    whole = Victim(folder / "whole", wanted, str(path), steps, folder / "printed")
    jobs.train_all({whole.out: wanted}, path)
    return whole


def differences(one, other, *, logs=0.0):
    """Names of what differs between two finished runs of the same settings, to the bit; empty where they are equal.

    Weights of `student.keras`, the files of the epochs' logs and counts, and `result.json` with the best score, but for
    its seconds, memory, commit and the place of the data.

    Args:
        one: Folder of a run.
        other: Folder of another.
        logs: Float: the relative difference that numbers in the tables may have.
    """
    one, other = pathlib.Path(one), pathlib.Path(other)
    weights = [keras.saving.load_model(out / "student.keras", compile=False).get_weights() for out in (one, other)]
    # Bytes, so that a NaN is equal to itself, and 0.0 is not -0.0.
    alike = [[(array.dtype, array.shape, array.tobytes()) for array in arrays] for arrays in weights]
    found = [] if alike[0] == alike[1] else ["student.keras"]
    tables = sorted({path.relative_to(out) for out in (one, other) for path in out.rglob("*.csv")})
    found += [str(table) for table in tables if not _same_table(one / table, other / table, logs)]
    results = [record.read_result(out) for out in (one, other)]
    keys = {key for result in results for key in result} - set(LAST)
    return found + sorted(f"result.json: {key}" for key in keys if results[0].get(key) != results[1].get(key))


def _same_table(one, other, within):
    if not (one.exists() and other.exists()):
        return False
    if not within or one.read_bytes() == other.read_bytes():
        return one.read_bytes() == other.read_bytes()
    rows, others = (record.read_csv(path) for path in (one, other))
    return len(rows) == len(others) and all(
        a.keys() == b.keys() and all(math.isclose(a[name], b[name], rel_tol=within) for name in a)
        for a, b in zip(rows, others)
    )


def wait_until(there, process):
    """Waits until `there()`; False if the process ended before.

    Raises:
        TimeoutError: Neither came.
    """
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if there():
            return True
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"Process {process.pid} did not come to where it was waited for within {PATIENCE} s.")
        time.sleep(0.0005)
    return False


def in_a_write(victim, process, generator):
    """Waits for a backup's write after a random step, and stops the process inside it; False where none came."""
    after = generator.randrange(victim.all_steps)
    remove_orphans(victim.backups)  # Of processes that were killed before.

    def caught():
        if victim.saved() < after or not _writing(victim, process):
            return False
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if _writing(victim, process):  # Now it stands still, in the write.
            return True
        process.send_signal(signal.SIGCONT)
        return False

    return wait_until(caught, process)


def _writing(victim, process):
    return any(victim.backups.glob("*.backup.*.writing"))


def at_a_step(victim, process, generator):
    """Waits for a random one of the steps that are left, and for up to a tenth of a second more."""
    if victim.saved() >= victim.all_steps:  # Killed before as the results were written: no step is left.
        return False
    step = generator.randrange(max(victim.saved(), 0), victim.all_steps)
    if not wait_until(lambda: victim.saved() >= step, process):
        return False
    time.sleep(generator.random() / 10)
    return process.poll() is None


def at_a_second(victim, process, generator, longest=30):
    """Waits for a random part of `longest` seconds: while it starts, builds its networks, trains, or ends."""
    time.sleep(longest * generator.random())
    return process.poll() is None


def at_the_end(victim, process, generator):
    """Waits until training has ended, and for up to two seconds more, in which the results are written."""
    if not wait_until(lambda: victim.saved() >= victim.all_steps, process):
        return False
    time.sleep(2 * generator.random())
    return process.poll() is None


MOMENTS = {
    "inside a backup's write": in_a_write,
    "at a random step": at_a_step,
    "at a random second": at_a_second,
    "as the results are written": at_the_end,
}


def kill(victim, moment, generator, number=signal.SIGKILL):
    """Starts a run, or goes on with it, and ends it by a signal at a moment.

    Args:
        victim: `Victim`.
        moment: A key of `MOMENTS`.
        generator: `random.Random`.
        number: The signal.

    Returns:
        `None` where the run came to its end before; else a dict: how many steps were saved, the exit status, and the
        seconds from the signal to the end.
    """
    process = victim.start()
    try:
        if not MOMENTS[moment](victim, process, generator):
            return None
        sent = time.monotonic()
        process.send_signal(number)
        status = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    took = time.monotonic() - sent
    return {"saved": victim.saved(), "status": status, "seconds": took}


def killed_runs(whole, moments, *, seed, say=print, most=3):
    """Kills runs at these moments, up to `most` times each, and lets them end.

    Args:
        whole: The `Victim` that was left alone.
        moments: List of keys of `MOMENTS`; their order is drawn.
        seed: Integer.
        say: Function of a line of text, that tells how far it has come.
        most: Integer.

    Returns:
        List of dicts, a run each: `"kills"`, what `kill` gives with its `"moment"`; and `"different"`, as of
        `differences`.
    """
    generator, left, runs = random.Random(seed), list(moments), []
    generator.shuffle(left)
    while left:
        victim = dataclasses.replace(whole, out=whole.out.with_name(f"killed-{len(runs)}"))
        kills = []
        for moment in left[: generator.randint(1, most)]:
            done = kill(victim, moment, generator)
            if done is None:  # It has ended: the moment is for another run.
                break
            kills.append({"moment": moment, **done})
        if not kills and len(runs) > 3 * len(moments):
            raise RuntimeError(f"Runs end before the moments {left} come. Let them be longer.")
        left = left[len(kills) :]
        if not (victim.out / "result.json").exists():
            victim.go_on()
        runs.append({"kills": kills, "different": differences(whole.out, victim.out)})
        say(f"{victim.out.name}: {len(kills)} kills, different: {runs[-1]['different'] or 'nothing'}", flush=True)
    return runs
