"""Reproduce a table or a figure of the papers.

    python train/reproduce.py --list
    python train/reproduce.py --table=6 --scale=cpu --data_dir=cifar100.npz --output_dir=runs/tables
    python train/reproduce.py --show_flags=RUN
    python train/reproduce.py --study=bias_variance --help

`--table` plans the runs that a table needs, prints which are pending and how long they take, trains them, and writes
the page of its data set, which has the paper's numbers and the measured ones of all tables. Tables are 1 to 11 of the
WSL paper (`10-imagenet` is the second part of 10), its `figure2` and `figure4`, and `online` of the paper on
supervision complexity. Three are not from a paper: `recipe` tests what WSL's recipe leaves open, `scale` separates the
weights of examples from the scale of the loss, and `best` combines WSL with newer losses. Scales are:

- `smoke`: minutes, on the digits or a few batches, to test that everything works. Pages go to --output_dir.
- `cpu`: real data, small networks, few epochs; about two hours per table on two cores.
- `paper`: the recipes with five seeds; needs a GPU.

Each run is a script of this directory in a process of its own. If it is stopped, the same command resumes it. A run
that several tables need is trained once, and so are its teacher and the soft labels that the runs of a seed share.
Finished runs are recorded in `records/` in --results, so that --report writes all pages without the runs. Teachers of
CIFAR-100 are kept there too. `--show_flags` prints the flags of a recorded run as a flagfile.

`--study` starts an experiment with flags of its own, a module of `reproduction/`.
"""

import importlib
import pathlib
import re
import sys
import types

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl.training import cli
from reproduction import figure2, figure4, launcher, pages, studies
from reproduction.presets import NUM_SEEDS, SCALES
from reproduction.run_store import RunStore
from reproduction.study_runner import RECORDS, StudyRunner
from reproduction.variants import CIFAR100

RESULTS = launcher.TRAIN / "results"
TABLES = (*studies.STUDIES, *studies.FIGURES)
STUDIES = (
    "bias_variance",
    "compare_methods",
    "contact_sheet",
    "figure2",
    "figure4",
    "online_distillation",
    "soft_label_storage",
    "supervision_complexity",
)


def list_studies():
    """Return a text with every table and its cells, and every study."""
    lines = []
    for name, study in studies.STUDIES.items():
        lines.append(f"--table={name}: {study.title} ({study.data})")
        for variant in study.variants:
            accuracy = "" if variant.paper is None else f", paper {variant.paper:.2f}"
            lines.append(f"    {' → '.join(variant.pair)}: {variant.name}{accuracy}")
    lines += [f"--table={figure}: uses the runs of table {table}" for figure, table in studies.FIGURES.items()]
    for name in STUDIES:
        docstring = importlib.import_module(f"reproduction.{name}").__doc__
        lines.append(f"--study={name}: {docstring.splitlines()[0]}")
    return "\n".join(lines)


def write_figure2(study_runner, data_dir):
    """Write figure 2 from the students of table 1 with seed 0, and return the path of its page."""
    store = study_runner.store
    finished = [run for run in study_runner.students if run.config.seed == 0 and run.name in store]
    if finished:
        key = {run.name: (run.config.temperature, run.variant.label_smoothed_teacher) for run in finished}
        students = {key[run.name]: store.get(run.name) for run in finished}
        teachers = {key[run.name][1]: store.row(run.teacher)["test_accuracy"] for run in finished}
        classes = launcher.load_splits(data_dir).train.classes
        figure2.write(students, teachers, classes, study_runner.results_dir, pathlib.Path(data_dir).stem)
    return study_runner.results_dir / "figure2.md"


def write_figure4(study_runner, data_dir):
    """Write figure 4 from the student of KD with seed 0, and return the path of its page."""
    (run,) = (run for run in study_runner.students if run.config.method == "kd")
    directory = study_runner.results_dir / "figure4"
    values = types.SimpleNamespace(data_dir=data_dir, output_dir=str(directory), split="train", temperature=None)
    figure4.run(study_runner.output_dir / run.name, values)
    return directory / "resemblance.md"


def run(values):
    """Train the pending runs of a table and write its page.

    Args:
        values: The parsed flags.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        FileNotFoundError: If the data are missing.
        ValueError: If there is no such table, a flag is missing, or a teacher's run failed.
    """
    if values.list:
        print(list_studies())
        return 0
    if values.show_flags:
        store = RunStore(pathlib.Path(values.results or RESULTS) / RECORDS)
        print("\n".join(store.get(values.show_flags).flag_lines))
        return 0
    if values.table not in TABLES:
        raise ValueError(f"--table must be one of {', '.join(TABLES)}. Received: --table={values.table}.")
    study = studies.STUDIES[studies.FIGURES.get(values.table, values.table)]
    if values.table == "figure4":
        study = study._replace(variants=tuple(v for v in study.variants if v.name == "KD"))
    smoke = values.scale == "smoke"
    data_dir = values.data_dir or (launcher.DIGITS if smoke and study.data == CIFAR100 else None)
    results_dir = values.results or (values.output_dir if smoke else RESULTS)
    if not values.output_dir or not (data_dir or (values.report and values.table not in studies.FIGURES)):
        raise ValueError(
            "--output_dir and --data_dir are needed: a directory for the runs, and the data set, "
            f"{study.data}. Received: --output_dir={values.output_dir}, --data_dir={values.data_dir}."
        )
    if data_dir not in (None, launcher.DIGITS) and not pathlib.Path(data_dir).exists():
        raise FileNotFoundError(f"--data_dir={data_dir} does not exist.")
    needs_networks = values.table == "figure4"
    num_seeds = 1 if needs_networks else values.seeds or NUM_SEEDS[values.scale]
    scale = SCALES[values.scale](values.preset)[study.data]
    study_runner = StudyRunner(study, scale, num_seeds, values.output_dir, results_dir, needs_networks=needs_networks)
    jobs = values.jobs or launcher.default_parallelism()
    head = f"{values.table}, scale {values.scale}, {num_seeds} seeds"
    print(f"{head}: {study_runner.describe(jobs)}", flush=True)
    if values.plan:
        return 0
    failed = [] if values.report else study_runner.train(data_dir, jobs)
    if values.table in studies.FIGURES:
        path = {"figure2": write_figure2, "figure4": write_figure4}[values.table](study_runner, data_dir)
    else:
        scale_names = ["smoke"] if smoke else [name for name in SCALES if name != "smoke"]
        pages.write_pages(values.output_dir, results_dir, values.preset, scale_names)
        path = pathlib.Path(results_dir) / f"{study.data}.md"
    finished = any(run.name in study_runner.store for run in study_runner.students)
    print(path if finished else f"No run of {pages.display_name(values.table)} is finished, so it has no results.")
    return int(bool(failed))


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of `--table`, `--list` and `--show_flags`."""
    own = {"flag_values": flag_values}
    flags.DEFINE_string("table", None, f"One of {', '.join(TABLES)}.", **own)
    flags.DEFINE_bool("list", False, "Print all tables with their cells, and all studies.", **own)
    flags.DEFINE_string("show_flags", None, "Print the flags of the recorded run of this name.", **own)
    flags.DEFINE_enum("scale", "smoke", list(SCALES), "How much of the paper's recipe to run.", **own)
    flags.DEFINE_integer("seeds", None, "Students per variant; by default the scale's.", lower_bound=1, **own)
    flags.DEFINE_integer("jobs", None, "Processes; by default as many as fit the device.", lower_bound=1, **own)
    flags.DEFINE_bool("plan", False, "Print the pending runs and stop.", **own)
    flags.DEFINE_bool("report", False, "Write the pages of finished runs without training.", **own)
    flags.DEFINE_string("data_dir", None, "As for the script of the data set; digits at --scale=smoke.", **own)
    flags.DEFINE_string("preset", "bert_base_en", "keras-nlp preset for table 11: a name or a directory.", **own)
    flags.DEFINE_string("output_dir", None, "Directory of the runs.", **own)
    text = "Directory of the pages and records; --output_dir at --scale=smoke, else train/results."
    flags.DEFINE_string("results", None, text, **own)


def select_study(argv, values=flags.FLAGS):
    """Define `--study` and return the module that it selects, or `None`.

    Args:
        argv: List of strings, the command line. Other flags, and flagfiles, are ignored.
        values: `absl.flags.FlagValues`.

    Raises:
        absl.flags.Error: If there is no such study.
    """
    text = "Start this experiment; `--study=NAME --help` lists its flags."
    flags.DEFINE_enum("study", None, STUDIES, text, flag_values=values)
    values([argument for argument in argv if not re.match("--?flagfile", argument)], known_only=True)
    return importlib.import_module(f"reproduction.{values.study}") if values.study else None


if __name__ == "__main__":
    try:
        selected = select_study(sys.argv)
    except flags.Error as error:
        sys.exit(f"{error} Pass --study, one of {', '.join(STUDIES)}.")
    if selected:
        sys.modules["__main__"].__doc__ = selected.__doc__  # For --help.
        selected.define_flags()
        cli.start(selected.main)
    define_flags()
    cli.start(lambda: run(flags.FLAGS))
