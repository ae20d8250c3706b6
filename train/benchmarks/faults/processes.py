"""Processes that end, wait, or collide: signals, a second run on the same folder, writers with the same process id."""

import os
import pathlib
import random
import shutil
import signal
import time

from benchmarks import fault_injection
from benchmarks.faults import child
from benchmarks.faults.fault import USER_ERROR_STATUS, classify, classify_finished, describe, fault
from keras_wsl import files
from keras_wsl.training import artifacts

SAME = "resumed to the same weights, logs, counts and best score"
SIGNALS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}


def _kills(bench, moment, times):
    for kills, run in fault_injection.killed_runs(bench.run, moment, times, seed=bench.seed):
        yield from kills * [classify_finished(bench.whole, run)]


@fault("SIGKILL while a backup is being written", SAME)
def sigkill_during_backup_write(bench):
    """Kill runs that are stopped inside the write."""
    yield from _kills(bench, fault_injection.during_backup_write, 6)


@fault("SIGKILL after a random step", SAME)
def sigkill_at_random_step(bench):
    """Kill runs while they train."""
    yield from _kills(bench, fault_injection.at_random_step, 6)


@fault("SIGKILL within 30 s of the start", SAME)
def sigkill_at_random_second(bench):
    """Kill runs whatever they do."""
    yield from _kills(bench, fault_injection.at_random_second, 4)


@fault("SIGKILL after the last step", SAME)
def sigkill_while_writing_results(bench):
    """Kill runs that write their results."""
    yield from _kills(bench, fault_injection.while_writing_results, 4)


def _terminations(bench, name, times):
    number, status = getattr(signal, name), SIGNALS[name]
    generator = random.Random(f"{bench.seed} {name}")
    for i in range(times):
        run = bench.run(f"{name.lower()}-{i}")
        done = fault_injection.interrupt(run, fault_injection.at_random_step, generator, [number])
        if done is None:
            continue
        line = run.last_line()
        # A signal after the last step finds everything saved, and may end the process at once.
        late = done["saved"] == run.total_steps and done["status"] in (0, -number, status)
        run.resume()
        yield classify_finished(
            bench.whole,
            run,
            f"{done['status']}: {line}"[:200],
            done["seconds"],
            **{f"status_{status}": done["status"] == status or late, "a_line": "--resume" in line or late},
        )


@fault("SIGTERM after a random step", "saved, a line, status 143; " + SAME)
def sigterm(bench):
    """End runs as a scheduler does."""
    yield from _terminations(bench, "SIGTERM", 5)


@fault("SIGINT (Ctrl-C) after a random step", "saved, a line, status 130; " + SAME)
def ctrl_c(bench):
    """End runs as a user does."""
    yield from _terminations(bench, "SIGINT", 3)


@fault("SIGHUP (a closed terminal) after a random step", "saved, a line, status 129; " + SAME)
def closed_terminal(bench):
    """End runs as a closed terminal does."""
    yield from _terminations(bench, "SIGHUP", 3)


@fault("SIGINT twice after a random step", "the second Ctrl-C ends the run at once; " + SAME)
def ctrl_c_twice(bench):
    """End runs that have no time to save."""
    generator = random.Random(f"{bench.seed} twice")
    for i in range(2):
        run = bench.run(f"twice-{i}")
        process, step = run.start(), generator.randrange(1, run.steps_per_epoch)
        fault_injection.wait_until(lambda run=run, step=step: run.saved_steps() >= step, process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        status = process.wait(fault_injection.TIMEOUT)
        seconds = time.monotonic() - began
        no_traceback = "Traceback" not in run.log.read_text()
        run.resume()
        yield classify_finished(
            bench.whole,
            run,
            f"status {status}",
            seconds,
            status_130=status in (130, -signal.SIGINT),
            at_once=seconds < 10,
            no_traceback=no_traceback,
        )


@fault(
    "a second process on the folder of a run that trains", "the second: status 2, a line; the first: the same result"
)
def two_runs(bench):
    """Start a run twice."""
    run = bench.run("shared")
    first = run.start()
    fault_injection.wait_until(lambda: run.saved_steps() >= 2, first)
    first.send_signal(signal.SIGSTOP)  # The second takes longer to start than the first to train.
    second = run.named("shared", log_dir=run.log_dir / "second")
    began = time.monotonic()
    status, line = second.start().wait(fault_injection.TIMEOUT), second.last_line()
    seconds = time.monotonic() - began
    first.send_signal(signal.SIGCONT)
    finished = first.wait(fault_injection.TIMEOUT) == 0
    yield classify_finished(
        bench.whole,
        run,
        line,
        seconds,
        first_finished=finished,
        status_2=status == USER_ERROR_STATUS,
        a_line=line.startswith("ValueError: ") and str(run.out) in line,
    )


@fault("the package tensorboard is missing", "before anything is trained or written: status 2, a line")
def without_tensorboard(bench):
    """Let the import of the package fail."""
    blocked = bench.folder / "blocked"
    artifacts.write_text(blocked / "tensorboard" / "__init__.py", 'raise ImportError("blocked")\n')
    run, began = bench.run("unlogged"), time.monotonic()
    path = f"{blocked}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    status = run.start(PYTHONPATH=path).wait(fault_injection.TIMEOUT)
    seconds, line = time.monotonic() - began, run.last_line()
    yield classify(
        line,
        seconds,
        status_2=status == USER_ERROR_STATUS,
        a_remedy="pip install tensorboard" in line,
        nothing_written=not run.out.exists(),
    )


@fault("tensorboard/ is removed while the run trains", "a warning; a new file is begun; the same result")
def events_removed(bench):
    """Remove a folder of a run that trains."""
    run = bench.run("removed")
    process = run.start()
    fault_injection.wait_until(lambda: run.saved_steps() >= run.steps_per_epoch + 2, process)
    shutil.rmtree(run.out / "tensorboard")
    finished = process.wait(fault_injection.TIMEOUT) == 0
    yield classify_finished(bench.whole, run, finished=finished, a_warning="removed" in run.log.read_text())


@fault(
    "learning rate 1e30, so that losses overflow", "status 2, a line that names the examples; the last backup is kept"
)
def loss_is_not_finite(bench):
    """Let a training diverge."""
    run = bench.run("not-finite").with_settings(learning_rate=1e30)
    status, line = run.start().wait(fault_injection.TIMEOUT), run.last_line()
    words = ("among examples", "have the numbers", "epoch 1, step")
    yield classify(
        line,
        data={"backup_is_kept": run.saved_steps() >= 0},
        status_2=status == USER_ERROR_STATUS,
        examples_named=all(word in line for word in words),
    )


@fault("two processes with the same id write one file 200 times each", "all writes succeed, the file is whole")
def same_process_id(bench):
    """Write from two containers that share a file system."""
    folder = bench.new_folder()
    both = [child.start(write_many, folder / "file", 200) for _ in range(2)]
    for process in both:
        failures = child.answer(process)
        content = (folder / "file").read_bytes()
        whole = len(content) == 4096 and len(set(content)) == 1
        note = f"{len(failures)} failures {failures[:1] or ''}"
        yield classify(note, data={"the_file_is_whole": whole}, all_writes_succeed=not failures)
    yield classify(no_file_left_behind=[path.name for path in folder.iterdir()] == ["file"])


def write_many(path, times):
    """Write a file many times as the process with id 7; return what failed."""
    os.getpid = lambda: 7
    failures = []
    for i in range(times):
        try:
            files.atomic_write(pathlib.Path(path), lambda file, i=i: file.write(bytes([i % 256]) * 4096))
        except Exception as error:
            failures.append(describe(error))
    return failures
