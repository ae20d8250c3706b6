"""Cost and effect of storing soft labels: students of one live teacher, and of its soft labels in each format.

    python train/reproduce.py --study=soft_label_storage \
        --flagfile=train/configs/studies/soft_label_storage_cpu.flags --data_dir=cifar100.npz --output_dir=runs/storage

Each run is `train/cifar100.py` in a process of its own, on the same views of the same examples. If it is stopped, the
same command resumes it. Writes `soft_labels.csv` and `soft_labels.md` to --results.
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

from keras_wsl import models, soft_labels, top_k_logits
from keras_wsl.analysis.fidelity import fidelity
from keras_wsl.training import artifacts, config
from keras_wsl.training.inputs import split_dataset
from reproduction import launcher, saved_runs
from reproduction.markdown import format_table
from reproduction.run_store import RunRecord

LIVE = "live teacher"


def storage_formats(ks, temperature):
    """Return a dict of names of formats to arguments of `soft_labels.write`.

    Args:
        ks: List of integers, the k of each top-k format.
        temperature: Temperature of the losses.
    """
    dense = {dtype: {"dtype": dtype} for dtype in soft_labels.DTYPES}
    return {**dense, **{f"top-{k}": {"top_k": k, "temperatures": (1.0, temperature)} for k in ks}}


def plan_runs(settings, out, formats):
    """Return a dict of names to the directory and the `Config` of a run.

    Args:
        settings: `Config` of the student with the live teacher.
        out: Path of the directory of the runs.
        formats: Dict of `storage_formats`.
    """
    without_teacher = {"teacher": "", "teacher_weights": "", "num_views": 0}
    runs = {LIVE: (out / "live", settings)}
    for name in formats:
        runs[name] = (
            out / name,
            dataclasses.replace(settings, **without_teacher, soft_labels=str(out / "stores" / name)),
        )
    return runs


def stored_logits(store, view, examples, temperature):
    """Return the logits of a view that a loss at the temperature uses: floats, shape `(examples, classes)`."""
    rows = store.lookup(view, examples.index)
    if store.manifest.top_k:
        expanded = top_k_logits.expand(rows, examples.labels, store.manifest.classes)
        rows = np.asarray(expanded.to_dense(temperature))
    return rows


def relative_distance(model, other_model):
    """Return the Euclidean distance of two networks' weights relative to the norm of the first's."""
    first, second = (np.concatenate([w.ravel() for w in m.get_weights()]) for m in (model, other_model))
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))


def compare(runs, stores, train, test, settings):
    """Return a row per run: `RunRecord.row`, and how its soft labels and its student differ from the exact ones.

    Args:
        runs: Dict of `plan_runs`, all finished.
        stores: Dict of names to `SoftLabels`.
        train: Training examples.
        test: Examples on which the students are compared.
        settings: `Config` of the run with a live teacher.
    """
    networks = {name: saved_runs.load_network(folder / "student.keras") for name, (folder, _) in runs.items()}
    logits = {
        name: launcher.compute_logits(network, test, settings.eval_batch_size) for name, network in networks.items()
    }
    exact = stored_logits(stores["float32"], 0, train, settings.temperature)
    rows = []
    for name, (folder, _) in runs.items():
        row = {"soft labels": name, **RunRecord.read(folder).row}
        if name != LIVE:
            stored = stored_logits(stores[name], 0, train, settings.temperature)
            difference = fidelity(student_logits=stored, teacher_logits=exact, temperature=settings.temperature)
            row["bytes_a_label"] = stores[name].manifest.row_type.itemsize
            row["teacher_total_variation"] = difference["mean_total_variation"]
            row["weight_distance"] = relative_distance(networks[LIVE], networks[name])
            row["agreement_with_live"] = fidelity(student_logits=logits[name], teacher_logits=logits[LIVE])[
                "top1_agreement"
            ]
        rows.append(row)
    return rows


def run(settings, values):
    """Write the soft labels, train the pending runs, and write the table."""
    if not (
        settings.teacher
        and settings.teacher_weights
        and settings.temperature
        and settings.num_views
        and values.output_dir
    ):
        raise ValueError("--teacher, --teacher_weights, --temperature, --num_views and --output_dir are needed.")
    out, formats = (
        pathlib.Path(values.output_dir),
        storage_formats([int(k) for k in values.top_k], settings.temperature),
    )
    splits = launcher.load_splits(values.data_dir)
    train = split_dataset(splits, settings)[0]
    options = {"classes": len(train.classes), "input_shape": train.input_shape}
    teacher = models.build(settings.teacher, weights=settings.teacher_weights, **options)
    shared = {"seed": settings.seed, "num_views": settings.num_views, "verbose": 2}
    stores = {
        name: soft_labels.write_soft_labels(teacher, train, out / "stores" / name, **shared, **format_)
        for name, format_ in formats.items()
    }
    runs = plan_runs(settings, out, formats)
    launcher.train_all(dict(runs.values()), values.data_dir, jobs=values.jobs)
    rows = compare(runs, stores, train, splits.test, settings)
    lines = table(rows)
    text = format_table(lines, tuple(lines[0]))
    results = pathlib.Path(values.results)
    artifacts.write_csv(results / "soft_labels.csv", rows)
    artifacts.write_text(
        results / "soft_labels.md",
        f"# Storing soft labels\n\n{settings.teacher} to {settings.student} by {settings.method}, "
        f"τ = {settings.temperature:g}; {len(train):,} examples, {settings.num_views} views, "
        f"{settings.epochs} epochs.\n"
        f"Made by `train/reproduce.py --study=soft_label_storage`; `soft_labels.csv` has the runs with flags and "
        f"commit.\n\n{text}",
    )
    print(text)


def table(rows):
    """Return the rows of the table.

    Args:
        rows: List of rows of `compare`.
    """
    lines = []
    for row in rows:
        is_stored = row["soft labels"] != LIVE
        lines.append(
            {
                "soft labels": row["soft labels"],
                "bytes per label": str(row["bytes_a_label"]) if is_stored else "",
                "teacher's total variation": f"{row['teacher_total_variation']:.1e}" if is_stored else "",
                "student's weights, distance": f"{row['weight_distance']:.1e}" if is_stored else "",
                "same prediction as live, %": f"{100 * row['agreement_with_live']:.2f}" if is_stored else "",
                "test accuracy, %": f"{100 * row['test_accuracy']:.2f}",
                "seconds": f"{row['seconds']:.0f}",
            }
        )
    return lines


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of a run of cifar100.py and those of this study."""
    own = {"flag_values": flag_values}
    launcher.define_flags("the files", jobs=1, **own)
    flags.DEFINE_list("top_k", ["20", "5"], "The k of each top-k format.", **own)


def main():
    """Train the pending runs and write the files."""
    run(config.from_flags(flags.FLAGS), flags.FLAGS)
