"""Resuming a run with something changed: other data, flags, teacher or student weights, other cores."""

import dataclasses
import os
import shutil

import numpy as np

from benchmarks import fault_injection
from benchmarks.faults import material
from benchmarks.faults.fault import UnsupportedFault, accepted, classify, fault, refused, snapshot, unchanged
from keras_wsl import data, models
from keras_wsl.training import artifacts

# Flags that decide what a run computes, with other values than those of `material.SHORT_RUN` with WSL.
CHANGED = {
    "seed": 1,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.1,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.0,
    "global_clipnorm": 1.0,
    "optimizer": "bert_adamw",
    "schedule": "linear",
    "decay_epochs": (1,),
    "temperature": 2.0,
    "alpha": 1.0,
    "student_loss_weight": 0.5,
    "label_smoothing": 0.1,
    "teacher_batch_statistics": True,
    "padding_mode": "reflect",
    "num_views": 1,
    "max_train_examples": 15,
    "validation_examples": 6,
    "dtype_policy": "mixed_bfloat16",
    "method": "kd",
    "extra_losses": ("kd",),
    "weighting": "wsl",
    "deterministic": False,
}


def _taught(folder, width=0):
    """Return the settings of a run with a teacher, whose weights are written into the folder."""
    teacher = models.build("resnet8", 3, input_shape=(8, 8, 3))
    for variable in teacher.trainable_variables:
        variable.assign_add(width * np.ones(variable.shape, "float32"))
    path = folder / f"teacher-{width}.weights.h5"
    models.save_weights(teacher, path)
    return {"method": "wsl", "teacher": "resnet8", "teacher_weights": str(path)}


def _refused_unchanged(run, name, **changes):
    before = snapshot(run)
    splits = changes.pop("splits", None)
    attempt = refused(lambda: material.run(run, splits, resume=True, **changes), *name)
    return unchanged(attempt, run, before)


@fault("--resume with one flag changed", "refused in a line that names the flag; no file is changed")
def other_flags(bench):
    """Change each flag that decides what a run computes."""
    folder = bench.new_folder()
    run, taught = folder / "run", _taught(folder)
    material.run(run, **taught)
    for name, value in CHANGED.items():
        yield _refused_unchanged(run, [name], **{**taught, name: value})


@fault("a line of run.flags is edited to fit the changed flag, then --resume", "refused in a line that names the flag")
def edited_flags(bench):
    """Edit the file by hand."""
    folder = bench.new_folder()
    run, taught = folder / "run", _taught(folder)
    material.run(run, **taught)
    path = run / "run.flags"
    original = path.read_text()
    for name in (
        "seed",
        "learning_rate",
        "batch_size",
        "weight_decay",
        "temperature",
        "padding_mode",
        "label_smoothing",
    ):
        changes = {**taught, name: CHANGED[name]}
        lines = {line.partition("=")[0]: line for line in original.splitlines()}
        artifacts.write_text(path, "\n".join({**lines, f"--{name}": f"--{name}={changes[name]}"}.values()) + "\n")
        yield _refused_unchanged(run, [name], **changes)
    artifacts.write_text(path, original)
    yield accepted(lambda: material.run(run, resume=True, **taught), "the original")


def _changed(splits, part, change):
    """Return `data.Splits` with the arrays of one part changed by a function of copies of images and labels."""
    examples = getattr(splits, part)
    images, labels = examples.images.copy(), examples.labels.copy()
    images, labels = change(images, labels)
    return splits._replace(**{part: dataclasses.replace(examples, images=images, labels=labels)})


def _one_pixel(images, labels):
    images[7, 3, 3, 0] ^= 1
    return images, labels


def _one_label(images, labels):
    labels[7] = (labels[7] + 1) % 3
    return images, labels


def _shuffled(images, labels):
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order], labels[order]


@fault(
    "--resume with other images, labels, order, classes or statistics",
    "refused in a line that says data; no file is changed",
)
def other_data(bench):
    """Change the data between two processes of a run."""
    run, splits = bench.new_folder() / "run", material.images()
    material.run(run, splits)
    train = splits.train
    others = [
        _changed(splits, "train", _one_pixel),
        _changed(splits, "train", _one_label),
        _changed(splits, "train", _shuffled),
        _changed(splits, "test", _one_pixel),
        _changed(splits, "test", _one_label),
        material.images(seed=1),
        splits._replace(train=dataclasses.replace(train, classes=("light", "grey", "dark"))),
        splits._replace(train=dataclasses.replace(train, mean=(0.4,) * 3)),
    ]
    for other in others:
        yield _refused_unchanged(run, ["data"], splits=other)
    yield accepted(lambda: material.run(run, material.images(), resume=True), "the same data, made again")


@fault(
    "the file of the data, or of the teacher, is moved or copied, then --resume", "accepted: the content is the same"
)
def moved_files(bench):
    """Move files that a run needs."""
    folder = bench.new_folder()
    run, taught = folder / "run", _taught(folder)
    data.save_npz(material.images(), folder / "images.npz")
    material.run(run, data.load_npz(folder / "images.npz"), **taught)
    (folder / "moved").mkdir()
    moved = shutil.move(folder / "images.npz", folder / "moved" / "images.npz")
    yield accepted(lambda: material.run(run, data.load_npz(moved), resume=True, **taught), "data")
    teacher = shutil.move(taught["teacher_weights"], folder / "moved")
    yield accepted(lambda: material.run(run, resume=True, **{**taught, "teacher_weights": str(teacher)}), "teacher")


@fault(
    "the weights of the teacher or of the student's start change, under the same name, then --resume", "refused by name"
)
def other_weights(bench):
    """Replace weight files between two processes of a run."""
    folder = bench.new_folder()
    taught, other = _taught(folder), _taught(folder, 1)
    for name, config in {
        "teacher": taught,
        "student": {"method": "none", "student_weights": taught["teacher_weights"]},
    }.items():
        path, run = folder / "teacher-0.weights.h5", folder / name
        content = path.read_bytes()
        material.run(run, **config)
        shutil.copy(other["teacher_weights"], path)
        yield _refused_unchanged(run, [name], **config)
        path.write_bytes(content)
        yield accepted(lambda run=run, config=config: material.run(run, resume=True, **config), name)


@fault(
    "a run is killed and resumed with one core instead of all",
    "a line says that bits may differ; the accuracy agrees to 5 points",
)
def other_cores(bench):
    """Resume on a smaller machine."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    if len(before) == 1:
        raise UnsupportedFault("this process has one core.")
    run = bench.run("other-cores")
    process = run.start()
    fault_injection.wait_until(lambda: run.saved_steps() >= run.steps_per_epoch, process)
    process.kill()
    process.wait()
    os.sched_setaffinity(0, {min(before)})  # What this process starts inherits it.
    try:
        run.resume()
    finally:
        os.sched_setaffinity(0, before)
    runs = (bench.whole.out, run.out)
    accuracies = [artifacts.read_result(out)["best_accuracy"] for out in runs]
    note = f"{', '.join(fault_injection.differences(*runs))}; best accuracies {accuracies}"
    alike = abs(accuracies[0] - accuracies[1]) < 0.05
    yield classify(note, a_line="core" in run.log.read_text(), accuracies_agree_to_5_points=alike)
