"""What storing soft labels costs and changes: students of one teacher, live and by its soft labels in each storage.

    python train/soft_label_storage.py --flagfile=train/configs/studies/soft_label_storage_cpu.flags
    --data_dir=cifar100.npz \
        --output_dir=runs/storage

Each run is `train/cifar100.py` in a process of its own, on the same views of the same examples; stopped and started
again it goes on, and finished runs are kept. Then `soft_labels.csv` and `soft_labels.md` are written to --results.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
import numpy as np
from absl import flags

import jobs
import report
import students
from evidence.run_store import RunRecord
from keras_wsl import models, soft_labels, top_k_logits
from keras_wsl.analysis.fidelity import fidelity
from keras_wsl.training import artifacts, cli, config, runner

LIVE = "live teacher"


def storages(ks, temperature):
    """Each storage by its name: settings of `soft_labels.write`.

    Args:
        ks: Integers, of top-k.
        temperature: Of the losses.
    """
    dense = {dtype: {"dtype": dtype} for dtype in soft_labels.DTYPES}
    return {**dense, **{f"top-{k}": {"k": k, "temperatures": (1.0, temperature)} for k in ks}}


def plan(wanted, out, kinds):
    """The runs: a dict of names to a run's folder and its `Config`.

    Args:
        wanted: `Config` of the student with the live teacher.
        out: Path of the folder of the runs.
        kinds: As of `storages`.
    """
    without = {"teacher": "", "teacher_weights": "", "num_views": 0}
    runs = {LIVE: (out / "live", wanted)}
    for name in kinds:
        runs[name] = out / name, dataclasses.replace(wanted, **without, soft_labels=str(out / "stores" / name))
    return runs


def stored_logits(store, view, examples, temperature):
    """What a loss at the temperature hears of a view: floats, shape `(examples, classes)`."""
    rows = store.rows(view, examples.index)
    if store.manifest.k:
        expanded = top_k_logits.expand(rows, examples.labels, store.manifest.classes)
        rows = np.asarray(expanded.at(temperature))
    return rows


def distance(one, other):
    """The difference of two networks' weights relative to the first's, by their Euclidean lengths."""
    one, other = (np.concatenate([w.ravel() for w in model.get_weights()]) for model in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def compare(runs, stores, train, test, wanted):
    """A row for each run: that of `RunRecord.row`, and how its soft labels and its student differ from the exact ones.

    Args:
        runs: As of `plan`, all finished.
        stores: Dict of names to `SoftLabels`.
        train: The examples that were trained on.
        test: Those on which the students are compared.
        wanted: `Config` of the live run.
    """
    networks = {name: students.saved(folder / "student.keras") for name, (folder, _) in runs.items()}
    said = {name: jobs.logits(network, test, wanted.eval_batch_size) for name, network in networks.items()}
    exact = stored_logits(stores["float32"], 0, train, wanted.temperature)
    rows = []
    for name, (folder, _) in runs.items():
        row = {"soft labels": name, **RunRecord.read(folder).row}
        if name != LIVE:
            heard = fidelity(exact, stored_logits(stores[name], 0, train, wanted.temperature), wanted.temperature)
            row["bytes_a_label"] = stores[name].manifest.row_type.itemsize
            row["teacher_total_variation"] = heard["mean_total_variation"]
            row["weight_distance"] = distance(networks[LIVE], networks[name])
            row["agreement_with_live"] = fidelity(said[LIVE], said[name])["top1_agreement"]
        rows.append(row)
    return rows


def run(wanted, values):
    """Writes the soft labels, trains what is missing, and writes the table."""
    if not (
        wanted.teacher and wanted.teacher_weights and wanted.temperature and wanted.num_views and values.output_dir
    ):
        raise ValueError("--teacher, --teacher_weights, --temperature, --num_views and --output_dir are needed.")
    out, kinds = pathlib.Path(values.output_dir), storages([int(k) for k in values.top_k], wanted.temperature)
    splits = jobs.splits_of(values.data_dir)
    train = runner.parts(splits, wanted)[0]
    options = {"classes": len(train.classes), "input_shape": train.input_shape}
    teacher = models.build(wanted.teacher, weights=wanted.teacher_weights, **options)
    settings_of_all = {"seed": wanted.seed, "num_views": wanted.num_views, "verbose": 2}
    stores = {
        name: soft_labels.write(teacher, train, out / "stores" / name, **settings_of_all, **storage)
        for name, storage in kinds.items()
    }
    runs = plan(wanted, out, kinds)
    jobs.train_all(dict(runs.values()), values.data_dir, jobs=values.jobs)
    rows = compare(runs, stores, train, splits.test, wanted)
    lines = table(rows)
    text = report.markdown(lines, tuple(lines[0]))
    results = pathlib.Path(values.results)
    artifacts.write_csv(results / "soft_labels.csv", rows)
    artifacts.write_text(
        results / "soft_labels.md",
        f"# Storing soft labels\n\n{wanted.teacher} to {wanted.student} by {wanted.method}, "
        f"τ = {wanted.temperature:g}; {len(train):,} examples, {wanted.num_views} views, {wanted.epochs} epochs.\n"
        f"Made by `train/soft_label_storage.py`; `soft_labels.csv` has the runs with flags and commit.\n\n{text}",
    )
    print(text)


def table(rows):
    """The lines of the table.

    Args:
        rows: Those of `RunRecord.row`, with what `run` adds.
    """
    lines = []
    for row in rows:
        of_store = row["soft labels"] != LIVE
        lines.append(
            {
                "soft labels": row["soft labels"],
                "bytes a label": str(row["bytes_a_label"]) if of_store else "",
                "teacher's total variation": f"{row['teacher_total_variation']:.1e}" if of_store else "",
                "student's weights, distance": f"{row['weight_distance']:.1e}" if of_store else "",
                "predictions as live, %": f"{100 * row['agreement_with_live']:.2f}" if of_store else "",
                "test accuracy, %": f"{100 * row['test_accuracy']:.2f}",
                "seconds": f"{row['seconds']:.0f}",
            }
        )
    return lines


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags of a run of cifar100.py, and this script's own."""
    own = {"flag_values": flag_values}
    jobs.define_flags("the files", at_once=1, **own)
    flags.DEFINE_list("top_k", ["20", "5"], "The k of each top-k storage.", **own)


if __name__ == "__main__":
    define_flags()
    cli.start(lambda: run(config.from_flags(flags.FLAGS), flags.FLAGS))
