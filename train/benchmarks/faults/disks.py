"""Disks that are full, small or read-only, links and files in the way, and what interrupted writes leave behind."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
import warnings

import keras
import numpy as np

from benchmarks import fault_injection
from benchmarks.faults import child, material
from benchmarks.faults.fault import (
    USER_ERROR_STATUS,
    UnsupportedFault,
    accepted,
    classify,
    classify_finished,
    fault,
    refused,
    snapshot,
    unchanged,
)
from keras_wsl import callbacks, export, files, models, soft_labels
from keras_wsl.training import artifacts

DISK_FULL = "OSError: [Errno 28]"


@contextlib.contextmanager
def disk(folder, size, *options):
    """Mount a disk in memory at a folder, and unmount it at the end.

    Args:
        folder: Path, made if it is missing.
        size: String, such as `8m`.
        *options: Other options of `mount -o`.

    Raises:
        UnsupportedFault: If the system does not let this user mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnsupportedFault(f"no disk could be mounted: {getattr(error, 'stderr', None) or error}") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Write a file until the disk of a folder is full, and return its path."""
    path = folder / "ballast"
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def _fill_at(bench, name, after):
    with disk(bench.folder / name, "8m") as folder:
        run = bench.run("run", out=folder / "run")
        process = run.start()
        fault_injection.wait_until(lambda: run.saved_steps() >= after, process)
        saved, began, ballast = run.saved_steps(), time.monotonic(), fill(folder)
        status, seconds = process.wait(fault_injection.TIMEOUT), time.monotonic() - began
        line, kept = run.last_line(), run.saved_steps() >= saved
        ballast.unlink()
        if not kept:
            return classify(line, seconds, data={"the_backup_is_kept": False})
        run.resume()
        clear = line.startswith(DISK_FULL) and "does not fit" in line
        return classify_finished(bench.whole, run, line, seconds, status_2=status == USER_ERROR_STATUS, a_line=clear)


@fault("a disk of 8 MiB that gets full", "status 2, a line that names the file; with room again: the same result")
def disk_full(bench):
    """Fill the disk while a run trains, and after its last step."""
    yield _fill_at(bench, "disk-training", bench.whole.steps_per_epoch // 2)
    yield _fill_at(bench, "disk-results", bench.whole.total_steps)


@fault("a disk that is mounted read-only", "status 2, a line; nothing is written")
def read_only_disk(bench):
    """Start a run on it."""
    with disk(bench.folder / "disk", "1m", "ro") as folder:
        run, began = bench.run("run", out=folder / "unwritable"), time.monotonic()
        status, line = run.start().wait(fault_injection.TIMEOUT), run.last_line()
        yield classify(
            line, time.monotonic() - began, status_2=status == USER_ERROR_STATUS, a_line="cannot be written to" in line
        )


@fault("TMPDIR is a disk without a free byte", "every writer succeeds")
def full_temporary_disk(bench):
    """Write each kind of file: the temporary ones belong beside the target."""
    folder = bench.new_folder()
    network = material.image_network("student")
    writers = {
        "student.keras": lambda path: export.save_keras(network, path),
        "saved_model": lambda path: export.export_saved_model(network, path),
        "student.weights.h5": lambda path: models.save_weights(network, path),
        "soft_labels": material.store,
        "result.json": lambda path: artifacts.write_json(path, {"accuracy": 1.0}),
    }
    with disk(folder / "tmp", "64k") as small:
        fill(small)
        tempfile.tempdir = str(small)
        try:
            for name, write in writers.items():
                target = folder / name
                yield accepted(lambda write=write, target=target: write(target) or target.exists(), name)
            weights = folder / "student.weights.h5"
            yield accepted(lambda: models.load_weights(network, weights) is None, "reading weights")
        finally:
            tempfile.tempdir = None


@fault("TMPDIR is a disk of 64 KiB for a whole run", "the same result")
def run_with_small_temporary_disk(bench):
    """Train with it."""
    run = bench.run("small-tmp")
    with disk(bench.folder / "tmp", "64k") as small:
        status = run.start(TMPDIR=str(small)).wait(fault_injection.TIMEOUT)
        if status:
            yield classify(run.last_line(), status_0=False)
        else:
            yield classify_finished(bench.whole, run)


@fault(
    "the newest backup is cut in half, or one of its bits is flipped",
    "a warning, the one before is used; the same result",
)
def newest_backup_damaged(bench):
    """Damage the backup of killed runs."""
    generator = random.Random(bench.seed)
    for i, change in enumerate(2 * [cut_in_half, lambda content: flip_bit(content, generator)]):
        run = bench.run(f"damaged-{i}")
        process = run.start()
        fault_injection.wait_until(lambda run=run: len(list(run.backups.glob("*.backup"))) > 1, process)
        process.kill()
        process.wait()
        newest = max(run.backups.glob("*.backup"))
        newest.write_bytes(change(newest.read_bytes()))
        run.resume()
        yield classify_finished(bench.whole, run, a_warning=f"{newest} is damaged" in run.log.read_text())


def cut_in_half(content):
    """Return the first half of a file's bytes."""
    return content[: len(content) // 2]


def flip_bit(content, generator):
    """Return a file's bytes with one bit flipped."""
    changed = bytearray(content)
    changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def block_in_write(path):
    """Write a file, and wait inside the write for ever."""

    def write(file):
        file.write(bytes(4096))
        file.flush()
        while True:
            time.sleep(1)

    files.atomic_write(pathlib.Path(path), write)


def _interrupted_write(path):
    """Start a process that is inside the write of a file, and return it."""
    before = set(path.parent.iterdir())
    process = child.start(block_in_write, path)
    if not fault_injection.wait_until(lambda: set(path.parent.iterdir()) - before, process):
        raise RuntimeError(process.communicate()[1][-2000:])
    return process


def _kill(process):
    process.kill()
    process.communicate()


@fault(
    "a process is killed inside the write of a file of a run or a store", "the next start removes the temporary file"
)
def orphans(bench):
    """Kill writers of each folder, and start again."""
    folder = bench.new_folder()
    run, store = folder / "run", folder / "store"
    material.run(run)
    material.store(store)
    starts = {
        run / "student.keras": lambda: material.run(run, resume=True),
        run / "epochs.csv": lambda: material.run(run, resume=True),
        run / "backups" / "000001-00000000.backup": lambda: material.run(run, resume=True),
        store / "unaugmented.shard-00000.npy": lambda: material.store(store),
        store / "examples.npy": lambda: material.store(store),
    }
    for path, start in starts.items():
        before = fault_injection.names(folder)
        _kill(_interrupted_write(path))
        start()
        left = sorted(fault_injection.names(folder) - before)
        yield classify(", ".join(left), no_file_left_behind=not left)


@fault("a second process is inside the write of a file of the folder", "the start leaves its temporary file alone")
def living_writer(bench):
    """Start beside a process that lives."""
    folder = bench.new_folder()
    material.store(folder / "store")
    before = set((folder / "store").iterdir())
    process = _interrupted_write(folder / "store" / "unaugmented.shard-00000.npy")
    temporary = set((folder / "store").iterdir()) - before
    try:
        material.store(folder / "store")
        yield classify(data={"its_file_is_there": all(path.exists() for path in temporary)})
    finally:
        _kill(process)


@fault("--output_dir is, or is below, a link, a file, a device", "one line; nothing is written elsewhere")
def output_in_the_way(bench):
    """Start a run on paths that are no folders."""
    folder = bench.new_folder()
    (folder / "file").write_text("text")
    (folder / "dangling").symlink_to(folder / "absent")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    before = snapshot(folder)
    for name in ("file", "file/run", "dangling", "dangling/run", "loop", "loop/run", "fifo", "fifo/run", "x" * 300):
        yield unchanged(refused(lambda name=name: material.run(folder / name)), folder, before)


@fault("run.lock is a symbolic link, a FIFO or a folder", "the target is unchanged; the run starts, or one line")
def lock_in_the_way(bench):
    """Put something in the place of the lock."""
    folder = bench.new_folder()
    thesis = folder / "thesis.tex"
    thesis.write_text("years of work")
    makers = {
        "link": lambda path: path.symlink_to(thesis),
        "hard link": lambda path: os.link(thesis, path),
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/full"),
    }
    for name, make in makers.items():
        run = folder / name
        run.mkdir()
        make(run / artifacts.LOCK)

        def start(run=run):
            with artifacts.lock_run(run):
                return True

        attempt = _refused_or_started(start)
        yield unchanged_file(attempt, thesis, "years of work")


def _refused_or_started(start):
    attempt = refused(start)
    return accepted(lambda: True) if attempt.note.startswith("accepted silently") else attempt


def unchanged_file(attempt, path, text):
    """Return the attempt, or a lost one if a file has another content."""
    content = path.read_text() if path.exists() else None
    return attempt if content == text else classify(attempt.note, data={"the_target_is_unchanged": False})


@fault("a file of a finished run is damaged or removed, then --resume", "it is written again with the same content")
def finished_run_damaged(bench):
    """Damage what can be made from the backup."""
    folder = bench.new_folder()
    run = folder / "run"
    material.run(run)
    for name in ("epochs.csv", "student.keras", "result.json", "curves.png"):
        content = _content(run / name)
        for change in (lambda path: path.write_bytes(b"\0damaged"), pathlib.Path.unlink):
            change(run / name)

            def written_again(path=run / name, content=content):
                material.run(run, resume=True)
                return _content(path) == content

            yield accepted(written_again, name)


def _content(path):
    """Return what two files have in common that were written for the same run at different times."""
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        return {name: value for name, value in values.items() if name not in fault_injection.VOLATILE}
    if path.suffix == ".keras":
        return [array.tobytes() for array in keras.saving.load_model(path, compile=False).get_weights()]
    return path.read_bytes()


@fault(
    "backups/ of a run is removed or emptied, then --resume",
    "a line that says so, or refused; never silently from the start",
)
def backups_removed(bench):
    """Remove what a run resumes from."""
    folder = bench.new_folder()
    for name, remove in (("removed", shutil.rmtree), ("emptied", _empty)):
        run = folder / name
        material.run(run)
        (run / "result.json").unlink()
        remove(run / "backups")
        yield _says_so(run)


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _says_so(run):
    """Return an attempt that is survived if resuming a run is refused, or prints or warns that backups are missing."""
    output = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(output):
        warnings.simplefilter("always")
        with contextlib.redirect_stderr(output):
            attempt = refused(lambda: material.run(run, resume=True), "backup")
    if not attempt.note.startswith("accepted silently"):
        return attempt
    text = output.getvalue() + " ".join(str(one.message) for one in caught)
    return classify(text.strip()[:200], a_line="backup" in text)


@fault(
    "arrays of backups, stores and weights with flipped bits, in this process",
    "damaged files are named; the one before is used",
)
def flipped_bits(bench):
    """Flip one bit in each of many copies of a backup."""
    folder, generator = bench.new_folder(), random.Random(bench.seed)
    content = backup(folder / "whole")
    for i in range(12):
        place = folder / str(i)
        place.mkdir()
        (place / "000000-00000000.backup").write_bytes(content)
        changed = flip_bit(content, generator) if i % 2 else content[: generator.randrange(len(content))]
        (place / "000001-00000000.backup").write_bytes(changed)
        yield accepted(lambda place=place: _position(place) == [0, 0])


def _position(place):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        position = callbacks.ExactBackupAndRestore(place, 2).initial_position
    return position if any("damaged" in str(one.message) for one in caught) else None


def backup(folder):
    """Train a small network for two steps, and return the bytes of its first backup."""
    x, y = material.examples(8)
    distiller = material.distiller()
    backup = callbacks.ExactBackupAndRestore(folder, 2, max_to_keep=5)
    distiller.fit(_endless(x, y), steps_per_epoch=2, epochs=1, verbose=0, callbacks=[backup], shuffle=False)
    return min(folder.glob("*.backup")).read_bytes()


def _endless(x, y):
    while True:
        yield x, y


@fault("a bit of a shard flips after it was read, with its time of change set back", "verify() names the file")
def shard_damaged_later(bench):
    """Verify, damage, verify."""
    folder = bench.new_folder()
    store = material.store(folder / "store")
    store.verify()
    generator = random.Random(bench.seed)
    for path in sorted(store.directory.glob("*.npy"))[:4]:
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(flip_bit(content, generator))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield refused(store.verify, path.name)
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@fault("a store of 32 MiB is opened a second time", "its bytes are not read again, and verify() reads all of them")
def opening_a_verified_store(bench):
    """Count the bytes that the process reads."""
    folder = bench.new_folder()
    if not pathlib.Path("/proc/self/io").exists():
        raise UnsupportedFault("the system does not count the bytes that a process reads.")
    config = {"seed": 3, "num_views": 2, "rows_per_file": 1 << 20, "batch_size": 4096, "verbose": 0}
    keras.utils.set_random_seed(0)
    splits = material.images(2000)
    names = tuple(map(str, range(2000)))
    wide = dataclasses.replace(splits.train, classes=names)
    store = soft_labels.write_soft_labels(material.image_network("teacher", 2000), wide, folder / "store", **config)
    soft_labels.SoftLabels(store.directory).verify()
    size = sum(path.stat().st_size for path in store.directory.glob("*.npy"))
    read = _bytes_read(lambda: soft_labels.SoftLabels(store.directory).lookup(0, np.arange(10)))
    yield classify(f"{read / size:.2f} of the bytes", few_bytes_are_read=read < size / 4)
    read = _bytes_read(soft_labels.SoftLabels(store.directory).verify)
    yield classify(f"{read / size:.2f} of the bytes", all_bytes_are_read=read > 0.9 * size)


def _bytes_read(work):
    def count():
        return int(pathlib.Path("/proc/self/io").read_text().split()[1])

    before = count()
    work()
    return count() - before
