"""What a step of each method costs, relative to KD's: time in turns with it, and the most memory.

    python train/benchmark.py --suite=method_cost --output_dir=train/results/methods_cost.csv

Random images of CIFAR's size. Each method has a process of its own, so that its peak of memory is its own: first the
method alone takes some steps, then it and KD take turns, and the median of the ratios of neighbouring steps counts.
"""

import csv
import dataclasses
import subprocess
import sys
import time

import numpy as np
from absl import flags

from benchmarks import SCRIPT
from keras_wsl import data, models
from keras_wsl.training import artifacts, build, build_losses, config, recipes
from keras_wsl.training.process_memory import peak_mib

COLUMNS = ("method", "stage", "milliseconds", "relative", "peak_memory_mib", "adapter_parameters")
CLASSES = 100


def examples(count):
    """Random images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    names = tuple(map(str, range(CLASSES)))
    return data.ImageArrays(images, np.arange(count) % CLASSES, names, (0.5,) * 3, (0.25,) * 3)


def distiller_of(wanted, train, stage=""):
    """A compiled Distiller of a method's main stage, or of its first one."""
    recipe = recipes.METHODS[wanted.method]
    teacher = models.build(wanted.teacher, CLASSES) if recipe.needs_teacher else None
    student = models.build(wanted.student, CLASSES)
    if stage:
        return build.build_pretraining_distiller(
            wanted, recipe, teacher, student, build_losses.build_stage_loss(wanted), train
        )
    losses = build_losses.build_main_losses(wanted, train)
    return build.build_distiller(wanted, recipe, teacher if losses else None, student, losses, train)


def measure(wanted, *, stage="", steps=30, negatives=16384):
    """What a step of a method costs, in this process.

    Args:
        wanted: `Config`: method, networks, batch size.
        stage: `"first"` for the stage before the main one.
        steps: Integer, how many are timed.
        negatives: Integer, CRD's, among 50,000 examples.

    Returns:
        Dict of `COLUMNS`.
    """
    contrasts = recipes.METHODS[wanted.method].data_dependent_kwargs is not None
    train = examples(50_000 if contrasts else 640)
    batch = next(iter(data.train_batches(train, seed=0, batch_size=wanted.batch_size)))
    settings_of_loss = (f"negatives={negatives}",) if contrasts else ()
    own = distiller_of(dataclasses.replace(wanted, loss_kwargs=settings_of_loss), train, stage)

    def step(distiller):
        start = time.perf_counter()
        distiller.train_on_batch(*batch)
        return time.perf_counter() - start

    for _ in range(5):
        step(own)
    peak = int(peak_mib())  # Before there is a second Distiller.
    kd = distiller_of(dataclasses.replace(wanted, method="kd"), train)
    for _ in range(3):  # The first one compiles.
        step(kd)
    pairs = [(step(own), step(kd)) for _ in range(steps)]
    adapters = [variable for loss in own.distillation_losses for variable in loss.trainable_variables]
    return {
        "method": wanted.method,
        "stage": stage,
        "milliseconds": round(1000 * float(np.median([one for one, _ in pairs])), 1),
        "relative": round(float(np.median([one / other for one, other in pairs])), 3),
        "peak_memory_mib": peak,
        "adapter_parameters": sum(int(np.prod(variable.shape)) for variable in adapters),
    }


def define_flags():
    """Define the flags of this suite."""
    flags.DEFINE_string("output_dir", None, "The table; a .csv file.")
    flags.DEFINE_string("method", "", "One method; all by default.")
    flags.DEFINE_string("stage", "", "first: the stage before the main one.")
    flags.DEFINE_string("teacher", "resnet20", "The teacher's network.")
    flags.DEFINE_string("student", "resnet8", "The student's network.")
    flags.DEFINE_integer("steps", 30, "Steps that are timed.", lower_bound=1)
    flags.DEFINE_integer("negatives", 16384, "CRD's negatives, among 50,000 examples.", lower_bound=1)


def main():
    """Measures the one method that is named, or all, each in a process of its own."""
    values = flags.FLAGS
    if values.method:
        wanted = config.Config(method=values.method, teacher=values.teacher, student=values.student)
        row = measure(wanted, stage=values.stage, steps=values.steps, negatives=values.negatives)
        csv.DictWriter(sys.stdout, COLUMNS).writerow(row)
        return 0
    rows = []
    for method, recipe in recipes.METHODS.items():
        for stage in ["", *(["first"] if recipe.stage else [])]:
            if stage == "" and recipe.loss is None and method != "none":
                continue
            arguments = [f"--{name}={getattr(values, name)}" for name in ("teacher", "student", "steps", "negatives")]
            done = subprocess.run(
                [sys.executable, SCRIPT, "--suite=method_cost", f"--method={method}", f"--stage={stage}", *arguments],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(f"{method} {stage}: {done.stderr[-500:]}", file=sys.stderr)
                continue
            rows.append(dict(zip(COLUMNS, done.stdout.strip().splitlines()[-1].split(","))))
            print(rows[-1], flush=True)
    artifacts.write_csv(values.output_dir, rows)
    return 0
