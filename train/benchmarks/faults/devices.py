"""Devices and workers: batches that do not divide by the replicas, workers that end or wait."""

import signal
import subprocess
import time

import keras
import numpy as np

from benchmarks import fault_injection, workers
from benchmarks.faults import child, material
from benchmarks.faults.fault import (
    USER_ERROR_STATUS,
    Attempt,
    UnsupportedFault,
    classify,
    classify_finished,
    describe,
    fault,
)
from keras_wsl import distribution

BATCHES = (11, 8, 5, 3, 1)
TOLERANCE = 1e-4


def _needs_tensorflow():
    if keras.backend.backend() != "tensorflow":
        raise UnsupportedFault("this strategy is TensorFlow's.")


def _make_devices(number):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * number)


def _trained(strategy, batch, rows=23, drop_remainder=False):
    """Return what `fit`, `evaluate` and `predict` of a small network give, with batches of this size."""
    import tensorflow as tf

    x, y = material.examples(rows)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=drop_remainder)
    with distribution.scope(strategy):
        distiller = material.distiller()
    history = distiller.fit(dataset, epochs=2, shuffle=False, verbose=0, validation_data=dataset).history
    return [
        *(np.asarray(values) for values in history.values()),
        np.asarray(list(distiller.evaluate(dataset, verbose=0, return_dict=True).values())),
        distiller.predict(dataset, verbose=0),
        *distiller.student.get_weights(),
    ]


def compare_with_one_device(number, cases):
    """Train on one device and on several logical ones; return an attempt for each case, `[batch, rows, drop]`."""
    _make_devices(number)
    attempts = []
    for case in cases:
        note = f"{number} devices, batches of {case[0]}, {case[1]} rows"
        try:
            one, several = (_trained(strategy, *case) for strategy in ("none", "mirrored"))
            far = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(one, several, strict=True))
            attempts.append(classify(f"{note}: differ by {far:.0e}", equal_to_one_device=far < TOLERANCE))
        except Exception as error:
            attempts.append(Attempt("wrong", f"{note}: {describe(error)}"[:300]))
    return attempts


@fault(
    "MirroredStrategy on 2, 4, 8 devices; batches that do not divide, the first one short",
    "equal to one device to 1e-4",
)
def uneven_batches(bench):
    """Train, evaluate and predict in processes that have several logical devices."""
    _needs_tensorflow()
    cases = [*((batch, 23, False) for batch in BATCHES), (64, 23, False), (11, 23, True), (5, 3, False)]
    for number, some in ((2, cases), (4, cases[::3]), (8, cases[2:3])):  # More replicas take longer to trace.
        for attempt in child.call(compare_with_one_device, number, some):
            yield Attempt(*attempt)


def train_on_devices(number, out, rows, batch_size, resumed):
    """Train `material.run` under MirroredStrategy on several logical devices, twice to resume it."""
    _make_devices(number)
    for resume in (False, True)[: 1 + resumed]:
        result = material.run(out, material.images(rows), strategy="mirrored", batch_size=batch_size, resume=resume)
    return result["test_accuracy"]


@fault("a whole run with --strategy=mirrored on 2, 4, 8 devices, and its --resume", "it ends with a result")
def mirrored_runs(bench):
    """Run the scripts' trainer in processes that have several logical devices."""
    _needs_tensorflow()
    folder = bench.new_folder()
    for number, rows, batch_size in ((2, 23, 16), (4, 30, 7), (8, 23, 5)):
        note = f"{number} devices, {rows} images, batches of {batch_size}"
        try:
            accuracy = child.call(train_on_devices, number, folder / str(number), rows, batch_size, True)
            yield classify(note, a_result=0 <= accuracy <= 1)
        except RuntimeError as error:
            yield Attempt("wrong", f"{note}: {str(error).splitlines()[-1]}"[:300])


def _log(run, index):
    return run.log_dir / f"{run.out.name}-{index}.log"


def _start_workers(run):
    run.log_dir.mkdir(parents=True, exist_ok=True)
    return workers.start(lambda index: run.command(), lambda index: _log(run, index))


def _finish_workers(run):
    """Start or resume both workers, and wait for their end."""
    for index, process in enumerate(_start_workers(run)):
        if status := process.wait(fault_injection.TIMEOUT):
            raise RuntimeError(f"Worker {index} ended with status {status}:\n{_log(run, index).read_text()[-3000:]}")


@fault(
    "SIGKILL to one of two workers", "the other: status 2, a line; both resume to the same weights, and logs to 1e-6"
)
def worker_lost(bench):
    """Kill the chief, and the other one."""
    _needs_tensorflow()
    alone = bench.run("workers").with_settings(strategy="multi_worker")
    _finish_workers(alone)
    for lost, name in enumerate(("chief", "other")):
        run = alone.named(f"workers-{name}-lost")
        processes = _start_workers(run)
        fault_injection.wait_until(lambda run=run: run.saved_steps() >= run.steps_per_epoch // 2, processes[lost])
        processes[lost].kill()
        began, left = time.monotonic(), 1 - lost
        status, seconds = processes[left].wait(fault_injection.TIMEOUT), time.monotonic() - began
        line = fault_injection.last_line(_log(run, left))
        _finish_workers(run)
        # A backup has the sum of the workers' metrics: in the interrupted epoch they are added in another order.
        claims = {"status_2": status == USER_ERROR_STATUS, "a_line": line.startswith("WorkerLostError")}
        yield classify_finished(alone, run, f"{name} lost: {line}", seconds, logs=1e-6, **claims)


def _waiting_worker(bench, name, *flags):
    """Start one of two workers, whose partner never starts, and return its run and process."""
    _needs_tensorflow()
    run = bench.run(name, flags=flags).with_settings(strategy="multi_worker")
    run.log_dir.mkdir(parents=True, exist_ok=True)
    # The partner's address is one where nobody answers.
    config = '{"cluster": {"worker": ["localhost:%d", "localhost:1"]}, "task": {"type": "worker", "index": 0}}'
    return run, run.start(TF_CONFIG=config % workers.free_ports(1)[0])


@fault("one of two workers is started alone, and gets SIGTERM, SIGINT", "a line says that it waits; the signal ends it")
def waiting_worker_terminated(bench):
    """End a worker that waits for its partner."""
    for number in (signal.SIGTERM, signal.SIGINT):
        run, process = _waiting_worker(bench, f"waiting-{number.name}")
        end = time.monotonic() + 120
        fault_injection.wait_until(lambda run=run, end=end: _waits(run) or time.monotonic() > end, process)
        process.send_signal(number)
        status, seconds = _ended(process, 60)
        ended = status in (128 + number, -number)
        yield classify(f"status {status}: {run.last_line()}", seconds, a_line=_waits(run), the_signal_ends_it=ended)


def _waits(run):
    return "waiting for" in run.log.read_text().lower()


def _ended(process, seconds):
    """Return the status of a process and the seconds until its end; it is killed after that many seconds."""
    began = time.monotonic()
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    return status, time.monotonic() - began


@fault("one of two workers is started alone with --worker_timeout=15", "status 2 after the timeout, a line")
def waiting_worker_timeout(bench):
    """Let a worker wait in vain."""
    run, process = _waiting_worker(bench, "waiting-timeout", "--worker_timeout=15")
    status, seconds = _ended(process, 180)
    line = run.last_line()
    yield classify(line, seconds, status_2=status == USER_ERROR_STATUS, a_line="worker" in line.lower())
