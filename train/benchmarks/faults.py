"""Faults done to real runs, and soaks: what comes of them, as a table.

    python train/benchmarks/faults.py --out=runs/faults

The runs are WSL on the digits, as `victim.prepare` makes them, in processes of their own. Writes `reliability.csv` and
`reliability.md` to --results after each fault. Full and read-only disks are real ones, of memory, for which Linux asks
for root; without, their rows say so. Half an hour on two CPU cores that do nothing else; --only does some.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # As the scripts of train/ find their neighbours.

import keras
from absl import flags

import record
import report
import scripts
from benchmarks import soak, victim, workers

RESULTS = pathlib.Path(__file__).parent.parent / "results"
COLUMNS = ("fault", "times", "as wanted", "what came of it", "seconds")
MOMENTS = {  # Of the twenty kills.
    "inside a backup's write": 6,
    "at a random step": 6,
    "at a random second": 4,
    "as the results are written": 4,
}
SOAKS = {"one distiller": 2000, "new distillers": 30, "new Keras models": 30}
ERROR = 2  # The exit status of an error that the user can mend.


class NotHere(Exception):
    """A fault that this system does not let the script do."""


@contextlib.contextmanager
def disk(folder, mib, *options):
    """A disk of its own, in memory, at a folder.

    Args:
        folder: Path, made if it is missing.
        mib: Its size.
        *options: Others of `mount -o`.

    Raises:
        NotHere: The system does not let this user mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={mib}m", *options]), "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere(f"no disk could be mounted: {getattr(error, 'stderr', None) or error}") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Writes a file until the disk of a folder is full; returns its path."""
    path = folder / "ballast"
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def row(fault, times, right, text, seconds=None):
    """A row of the table; `seconds` is one number or several, of which the range is shown."""
    seconds = [] if seconds is None else seconds if isinstance(seconds, list) else [seconds]
    shown = sorted({f"{bound:.1f}" for bound in (min(seconds), max(seconds))}, key=float) if seconds else []
    return dict(zip(COLUMNS, (fault, times, right, text, " to ".join(shown))))


def kills(whole, moments, seed, say=print):
    """SIGKILL at these moments: a row for each of `victim.MOMENTS`."""
    runs = victim.killed_runs(whole, moments, seed=seed, say=say)
    rows = []
    for moment in dict.fromkeys(moments):
        hit = [not run["different"] for run in runs for kill in run["kills"] if kill["moment"] == moment]
        text = "resumed to the same weights, logs, counts and best score as the run that was left alone"
        rows.append(row(f"SIGKILL {moment}", len(hit), sum(hit), text))
    rows[-1]["what came of it"] += f"; all kills: {len(runs)} runs, of up to 3 kills each"
    return rows


def sigterm(whole, times, seed):
    """SIGTERM at random steps. Where the last one is done already, there is nothing to save: the run just ends."""
    generator, right, late, seconds = random.Random(seed), 0, 0, []
    for number in range(times):
        run = dataclasses.replace(whole, out=whole.out.with_name(f"terminated-{number}"))
        done = victim.kill(run, "at a random step", generator, signal.SIGTERM)
        if done is None:
            continue
        told = done["status"] == 128 + signal.SIGTERM and run.last_line().endswith("Pass --resume.")
        over = done["saved"] == whole.all_steps and done["status"] in (0, -signal.SIGTERM)
        late += over
        seconds.append(done["seconds"])
        run.go_on()
        right += (told or over) and not victim.differences(whole.out, run.out)
    text = f"saved, status {128 + signal.SIGTERM}, a line that says so; resumed to the same run. Seconds to the exit"
    if late:
        text += f". {late} came after the last step, with all saved, and let the run end or ended it"
    return [row("SIGTERM at a random step", times, right, text, seconds)]


def worker_lost(whole):
    """SIGKILL to one of two workers, the chief and the other: the one that is left stops, and both go on together.

    Raises:
        NotHere: The backend has no such strategy.
    """
    if keras.backend.backend() != "tensorflow":
        raise NotHere("several workers are TensorFlow's.")
    out = whole.out.with_name("workers")
    alone = dataclasses.replace(whole, out=out, wanted=dataclasses.replace(whole.wanted, strategy="multi_worker"))
    _both_end(alone)
    rows = []
    for lost, name in enumerate(("the chief", "the other one")):
        run = dataclasses.replace(alone, out=out.with_name(f"workers-{lost}-lost"))
        processes = _both(run)
        victim.wait_until(lambda run=run: run.saved() >= run.steps // 2, processes[lost])
        processes[lost].kill()
        began, left = time.monotonic(), 1 - lost
        status, took = processes[left].wait(victim.PATIENCE), time.monotonic() - began
        said = victim.last_line(_printed(run, left))
        _both_end(run)
        right = status == ERROR and said.startswith("WorkerLost: Another worker has ended")
        # A backup has the sum of the workers' metrics: in the epoch that was cut they are added in another order.
        right = right and not victim.differences(alone.out, run.out, logs=1e-6)
        text = (
            f"the worker that is left: status {status}, `{short(said, out.parent)}`; both started again with "
            "`--resume` ended with weights, counts and best score of the two that were left alone, and logs to 1e-6. "
            "Seconds to the exit"
        )
        rows.append(row(f"of two workers, {name} killed", 1, int(right), text, took))
    return rows


def _printed(run, index):
    return run.prints / f"{run.out.name}-{index}.printed"


def _both(run):
    run.prints.mkdir(parents=True, exist_ok=True)
    return workers.start(lambda index: run.command(), lambda index: _printed(run, index))


def _both_end(run):
    """Starts both workers, or goes on with them, and waits for their end."""
    for index, process in enumerate(_both(run)):
        if status := process.wait(victim.PATIENCE):
            printed = _printed(run, index).read_text()[-3000:]
            raise RuntimeError(f"Worker {index} ended with status {status}:\n{printed}")


def truncate(content):
    """The first half of a file's bytes."""
    return content[: len(content) // 2]


def flip(content, generator):
    """A file's bytes with one bit the other way."""
    changed = bytearray(content)
    changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def damage(whole, times, seed):
    """The newest backup of a killed run cut in half, and with a flipped bit."""
    generator, rows = random.Random(seed), []
    for name, change in (("cut in half", truncate), ("with one bit flipped", lambda c: flip(c, generator))):
        right = 0
        for number in range(times):
            run = dataclasses.replace(whole, out=whole.out.with_name(f"damaged-{name.split()[0]}-{number}"))
            process = run.start()
            victim.wait_until(lambda run=run: len(list(run.backups.glob("*.backup"))) > 1, process)
            process.kill()
            process.wait()
            newest = max(run.backups.glob("*.backup"))
            newest.write_bytes(change(newest.read_bytes()))
            run.go_on()
            warned = f"{newest} is damaged" in run.printed.read_text()
            right += warned and not victim.differences(whole.out, run.out)
        text = "a warning that names it, the one before was used, and the run ended as the one that was left alone"
        rows.append(row(f"newest backup {name}", times, right, text))
    return rows


def full_disk(whole):
    """A disk that gets full while the run trains, and after: it ends with a line, and goes on once there is room."""
    rows = []
    for name, after in (("as it trains", whole.steps // 2), ("as the results are written", whole.all_steps)):
        with disk(whole.out.with_name("disk"), 8) as folder:
            run = dataclasses.replace(whole, out=folder / "run")
            process = run.start()
            victim.wait_until(lambda run=run, after=after: run.saved() >= after, process)
            saved, began, ballast = run.saved(), time.monotonic(), fill(folder)
            status, took = process.wait(victim.PATIENCE), time.monotonic() - began
            said = run.last_line()
            kept = run.saved() >= saved
            ballast.unlink()
            run.go_on()
            different = victim.differences(whole.out, run.out)
        clear = said.startswith("OSError: [Errno 28]") and "does not fit" in said and "Make room" in said
        right = status == ERROR and clear and kept and not different
        text = f"status {status}: `{short(said, folder)}`; with room again `--resume` ended as the run left alone"
        rows.append(row(f"disk full {name}", 1, int(right), text, took))
    return rows


def read_only(whole):
    """An --out on a disk that can only be read."""
    with disk(whole.out.with_name("disk"), 1, "ro") as folder:
        run, began = dataclasses.replace(whole, out=folder / "unwritable"), time.monotonic()
        status, said = run.start().wait(victim.PATIENCE), run.last_line()
        right = status == ERROR and "cannot be written to" in said
        text = f"status {status}: `{short(said, folder)}`"
        return [row("--out can only be read", 1, int(right), text, time.monotonic() - began)]


def two_runs(whole):
    """A second process on the same --out, while the first trains."""
    run = dataclasses.replace(whole, out=whole.out.with_name("shared"))
    first = run.start()
    victim.wait_until(lambda: run.saved() >= 2, first)
    first.send_signal(signal.SIGSTOP)  # The second takes longer to start than the first to train.
    second, began = dataclasses.replace(run, prints=run.prints / "second"), time.monotonic()
    status, said = second.start().wait(victim.PATIENCE), second.last_line()
    took = time.monotonic() - began
    first.send_signal(signal.SIGCONT)
    right = status == ERROR and "Another process is writing" in said
    right = first.wait(victim.PATIENCE) == 0 and right and not victim.differences(whole.out, run.out)
    text = f"the second: status {status}, `{short(said, whole.out.parent)}`; the first ended as the run left alone"
    return [row("two runs on the same --out", 1, int(right), text, took)]


def without_tensorboard(whole):
    """The package tensorboard is not there."""
    blocked = whole.out.with_name("blocked")
    record.write_text(blocked / "tensorboard" / "__init__.py", 'raise ImportError("blocked")\n')
    run, began = dataclasses.replace(whole, out=whole.out.with_name("unlogged")), time.monotonic()
    status = run.start(PYTHONPATH=f"{blocked}{os.pathsep}{os.environ.get('PYTHONPATH', '')}").wait(victim.PATIENCE)
    said, took = run.last_line(), time.monotonic() - began
    right = status == ERROR and "pip install tensorboard" in said and not run.out.exists()
    text = f"before anything is trained or written, status {status}: `{short(said, whole.out.parent)}`"
    return [row("TensorBoard not installed", 1, int(right), text, took)]


def events_removed(whole):
    """The folder of the events file is removed while the run trains."""
    run = dataclasses.replace(whole, out=whole.out.with_name("removed"))
    process = run.start()
    victim.wait_until(lambda: run.saved() >= whole.steps + 2, process)
    shutil.rmtree(run.out / "tensorboard")
    right = process.wait(victim.PATIENCE) == 0 and "was removed while it was being written" in run.printed.read_text()
    right = right and not victim.differences(whole.out, run.out)
    text = "a warning that names it; a new file is begun, and the run ended as the one that was left alone"
    return [row("tensorboard/ removed while it trains", 1, int(right), text)]


def not_finite(whole):
    """A learning rate with which losses overflow."""
    wanted = dataclasses.replace(whole.wanted, learning_rate=1e30)
    run = dataclasses.replace(whole, out=whole.out.with_name("not-finite"), wanted=wanted)
    status = run.start().wait(victim.PATIENCE)
    said = run.last_line()
    told = ("among examples", "have the numbers", "epoch 1, step")
    right = status == ERROR and all(words in said for words in told) and run.saved() >= 0
    text = f"status {status}: `{said[: said.index(' (all counted')] if right else said[:200]}`, and their numbers"
    return [row("a loss that is not finite", 1, int(right), text)]


def short(text, folder):
    """A line without the name of the folder where it was measured."""
    return text.replace(f"{folder}{os.sep}", "").replace(str(folder), "DISK").replace("|", "/").replace("`", "'")


def soaked(kind, calls):
    """A row on the memory, and on what else is left, of many calls of `fit`."""
    began = time.monotonic()
    return [soak_row(kind, soak.measure(kind, calls), time.monotonic() - began)]


def soak_row(kind, samples, seconds):
    """A row of samples, as `soak.measure` gives them; a new model for each call, and Keras alone, have no target."""
    first, last, growth = samples[0], samples[-1], soak.growth(samples)
    left = {name: last[name] - first[name] for name in ("objects", "threads", "files") if last[name] is not None}
    text = (
        f"{growth:+.2%} of memory from call {first['calls']} ({first['mib']:.1f} MiB) to {last['calls']} "
        f"({last['mib']:.1f} MiB); {', '.join(f'{number:+d} {name}' for name, number in left.items())}"
    )
    met = last["calls"] * (growth < 0.02) if kind == "one distiller" else ""
    return row(f"soak: {kind}", last["calls"], met, text, seconds)


def faults(whole, seed):
    """What is measured: a dict of names to functions that give rows."""
    moments = [moment for moment, times in MOMENTS.items() for _ in range(times)]
    done = {
        "kills": functools.partial(kills, whole, moments, seed),
        "sigterm": functools.partial(sigterm, whole, 5, seed),
        "worker_lost": functools.partial(worker_lost, whole),
        "damage": functools.partial(damage, whole, 2, seed),
    }
    for fault in (full_disk, read_only, two_runs, without_tensorboard, events_removed, not_finite):
        done[fault.__name__] = functools.partial(fault, whole)
    for kind, calls in SOAKS.items():
        done[kind] = functools.partial(soaked, kind, calls)
    return done


NAMES = tuple(faults(None, 0))


def page(rows, environment):
    """The page of results."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    cells = [{column: str(one[column]) for column in COLUMNS} for one in rows]
    return (
        "# Reliability\n\n"
        "Made by `train/benchmarks/faults.py`: real runs of `train/cifar100.py` in processes of their own, WSL from\n"
        "ResNet-8 to ResNet-8 on the digits, 3 epochs of 22 steps, a backup every second step, deterministic\n"
        "operations. The same run: weights, logs, counts and best score to the bit. Seconds were taken beside other\n"
        "work: they are upper bounds.\n\n"
        f"{os.cpu_count()} CPU cores; {environment['backend']}, Python {environment['python']}, {versions}.\n\n"
        f"{report.markdown(cells, COLUMNS)}\n"
        "A soak is many calls of `fit` of two steps, with Backup, FiniteLoss, RegularizationSamples and Scalars;\n"
        "its growth counts from the first tenth of the calls on. A new model for each call is no target: TensorFlow\n"
        "keeps the graph of every step that Keras compiles, after `clear_session` too. Keras alone shows it; a\n"
        "Distiller's graph has two networks and the losses, and is larger. The networks and their variables go\n"
        "(`tests/train/test_faults.py`).\n"
    )


def main():
    """Does the faults, prints the table, and writes the files after each."""
    values, environment = flags.FLAGS, record.environment()
    if unknown := sorted(set(values.only) - set(NAMES)):
        raise ValueError(f"There are no faults {unknown}. Expected --only of {', '.join(NAMES)}.")
    results = pathlib.Path(values.results)
    table = results / "reliability.csv"
    kept = record.read_texts(table) if table.exists() else []
    whole = victim.prepare(pathlib.Path(values.out).absolute())
    for name, fault in faults(whole, values.seed).items():
        if name not in (values.only or NAMES):
            continue
        print(name, flush=True)
        try:
            rows = fault()
        except NotHere as reason:
            rows = [row(name, 0, "", f"not done here: {reason}")]
        rows = [
            {"name": name, **one, "backend": environment["backend"], "commit": environment["commit"]} for one in rows
        ]
        # Those of an earlier call of this script, but for what was done again, in the order of the faults.
        kept = sorted([one for one in kept if one["name"] != name] + rows, key=lambda one: NAMES.index(one["name"]))
        record.write_csv(table, kept)
        record.write_text(results / "reliability.md", page(kept, environment))
    print(page(kept, environment))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder of the runs, which must not be there yet.", required=True)
    flags.DEFINE_list("only", [], f"Faults, of {', '.join(NAMES)}; all by default.")
    flags.DEFINE_string("results", str(RESULTS), "Folder of the files.")
    flags.DEFINE_integer("seed", 0, "Of the moments.")
    scripts.start(main)
