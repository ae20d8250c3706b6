"""A table or figure of the papers from one command, at a budget.

    python train/tables.py --table=6 --budget=cpu --data_dir=cifar100.npz --output_dir=runs/tables

plans the runs that it needs, says what is left and how long that takes, trains it, and writes `tableN.md` to --results,
with the paper's numbers beside these; and the pages of other tables that share its runs. Tables are 1 to 11 of the WSL
paper (`10-imagenet` for the second part of 10), its `figure2` and `figure4`, and `online` of the paper on supervision
complexity. Of our own, `recipe` tries what WSL's recipe leaves open, `scale` tells its weights of examples from its
larger loss, and `best` has combinations that no paper has. Budgets:

- `smoke`: minutes, on the digits or a few batches; whether everything works. Its pages go to --output_dir.
- `cpu`: real data, small networks, few epochs: planned for two hours on two cores.
- `paper`: the recipes, five seeds; for a GPU.

Each run is a script of this folder in a process of its own. Stopped and started again it goes on; a run that several
tables need is trained once, and so are its teacher and the soft labels that runs of a seed share. What tables need of
finished runs is recorded in --results, so that --report writes the pages anew without the runs. Teachers of CIFAR-100
are kept there too. The flags of a recorded run, as a flagfile:

    python train/tables.py --show_flags=RUN
"""

import dataclasses
import pathlib
import types

import before_tensorflow  # noqa: F401
from absl import flags

import jobs
import regularization_samples
import resemblance
from evidence import page, paper, picture
from evidence.budgets import BUDGETS, SEEDS, cuts, plan
from evidence.estimates import Estimator, format_seconds
from evidence.run_store import RunStore
from keras_wsl import models, soft_labels
from keras_wsl.files import copy_atomically, make_directory
from keras_wsl.models.weights import read_network, save_weights
from keras_wsl.training import artifacts, cli, runner

NAMES = (*paper.STUDIES, *paper.FIGURES)
RECORDS = "records"  # Directory of the tables of finished runs, in that of the pages.
RESULTS = jobs.HERE / "results"
MOST_SEEDS = 20  # Which a page looks for.
EXAMPLES = 50_000  # Of a run that has all of CIFAR-100, for estimates.


class Work:
    """The runs of one study: what is done, what is left, and where everything is.

    Args:
        study: `paper.Study`.
        scale: `budgets.Scale` of its data set.
        seeds: Integer.
        out: Folder of the runs.
        results: Folder of the pages, and of `records/`, the tables of finished runs.
        networks: Whether the students' networks are needed, and not their numbers alone.
    """

    def __init__(self, study, scale, seeds, out, results, *, networks=False):
        self.study, self.scale, self.networks = study, scale, networks
        self.out, self.results = _from_here(out), _from_here(results)  # They stand in the files that are kept.
        self.store = RunStore(self.results / RECORDS)
        self.teachers, self.students = plan(study, scale, seeds)
        for run in (*self.teachers.values(), *self.students):
            self.store.add(self.out / run.name, study.data)

    def left(self):
        """The teachers and the students that are still to be trained: two lists of `budgets.Run`."""
        students = [run for run in self.students if not self._done(run)]
        needed = {run.teacher for run in students if run.teacher and not self._can_teach(run)}
        return [run for name, run in self.teachers.items() if name in needed], students

    def _done(self, run):
        return (self.out / run.name / "student.keras").exists() if self.networks else run.name in self.store

    def _can_teach(self, run):
        checkpoints = not run.wanted.online or (self.out / run.teacher / "result.json").exists()
        return self.weights(run.teacher).exists() and checkpoints

    def weights(self, teacher):
        """The file of a teacher: among the results where it is kept there, else in the folder of the runs."""
        kept = self.results / "weights" / f"{teacher}.weights.h5"
        return kept if kept.exists() else self.out / "weights" / kept.name

    def soft_labels(self, run):
        """The folder of the soft labels that a run hears, with all runs of its seed and teacher."""
        return self.out / "soft_labels" / f"{run.teacher}-{run.wanted.seed}"

    def config(self, run):
        """The `Config` of a run with the files of its teacher."""
        if run.teacher is None:
            return run.wanted
        files = {"teacher_weights": str(self.weights(run.teacher))}
        if run.wanted.online:
            files["teacher_checkpoints"] = str(self.out / run.teacher / "checkpoints")
        if run.replays:
            files["soft_labels"] = str(self.soft_labels(run))
        return dataclasses.replace(run.wanted, **files)

    def train(self, data_dir, at_once):
        """Trains what is left; returns the names of the runs that failed.

        Raises:
            ValueError: A teacher's run failed, or a folder holds a run of other settings.
            PreemptedError: SIGINT, SIGTERM or SIGHUP was received; the runs have saved their states.
        """
        teachers, students = self.left()
        data_dir = jobs.file_of(data_dir, self.out)
        jobs.train_all({self.out / run.name: run.wanted for run in teachers}, data_dir, jobs=at_once)
        for run in teachers:
            self._keep_teacher(run)
        self._write_soft_labels([run for run in students if run.replays], data_dir)
        # A run that two arms have is one.
        runs = {self.out / run.name: self.config(run) for run in students}
        return jobs.train(runs, data_dir, jobs=at_once, after=lambda out: self._keep(out, at_once))

    def _keep(self, out, at_once):
        self.store.add(out, self.study.data)
        print(self.told(at_once).splitlines()[0], flush=True)

    def _keep_teacher(self, run):
        """Writes a teacher's weights in float16, which is what all its students hear, here and where they are kept."""
        self.store.add(self.out / run.name, self.study.data)
        path = self.weights(run.name)
        make_directory(path.parent)
        save_weights(read_network(self.out / run.name / "student.keras"), path)
        if self.study.data == paper.CIFAR100 and self.results != self.out:
            make_directory(self.results / "weights")
            copy_atomically(path, self.results / "weights" / path.name)

    def _write_soft_labels(self, students, data_dir):
        """One view an epoch of what a seed's students will see; what is written already stays."""
        splits = jobs.splits_of(data_dir) if students else None
        for folder, run in {self.soft_labels(run): run for run in students}.items():
            train = runner.parts(splits, run.wanted)[0]
            options = {"classes": len(train.classes), "input_shape": train.input_shape}
            teacher = models.build(run.wanted.teacher, weights=self.weights(run.teacher), **options)
            soft_labels.write(
                teacher,
                train,
                folder,
                seed=run.wanted.seed,
                num_views=run.wanted.num_views or run.wanted.epochs,
                teacher_file=self.weights(run.teacher),
                verbose=2,
            )

    def told(self, at_once):
        """What is done and left, and how long it will take: text."""
        teachers, students = self.left()
        todo = list({run.name: run for run in (*teachers, *students)}.values())
        estimator = Estimator(self.store.rows(), EXAMPLES)
        seconds = {run.name: estimator.estimate(run) for run in todo}
        lines = [f"  {name}: {'not known' if s is None else format_seconds(s)}" for name, s in seconds.items()]
        known = [s for s in seconds.values() if s is not None]
        total = f", about {format_seconds(sum(known) / at_once)} with {at_once} at a time" if known else ""
        total += ", by runs on other devices" if known and estimator.from_other_devices else ""
        unknown = f", and {len(todo) - len(known)} whose like was not run" if known and len(known) < len(todo) else ""
        count = len({run.name for run in self.students}) - len({run.name for run in students})
        head = f"{count} students are done; left: {len(teachers)} teachers, {len(todo) - len(teachers)} students"
        return "\n".join([f"{head}{total}{unknown}.", *lines])

    def lines(self):
        """The finished runs by arm, as `page.Line`s, and facts on the teachers and on what was not run."""
        lines = {}
        for run in self.students:
            if run.name not in self.store:
                continue
            line = lines.setdefault((run.pair, run.arm.name), page.Line(run.arm, run.pair, {}))
            line.rows[run.wanted.seed] = self.store.row(run.name)
        facts = self._facts()
        for pair in dict.fromkeys(run.pair for run in self.students):
            arms = dict.fromkeys(run.arm.name for run in self.students if run.pair == pair)
            if missing := [name for name in arms if (pair, name) not in lines]:
                facts[f"Not run, {' → '.join(pair)}"] = "; ".join(missing)
        return list(lines.values()), facts

    def _facts(self):
        found = {}
        for name, run in self.teachers.items():
            if name in self.store:
                accuracy = 100 * self.store.row(name)["test_accuracy"]
                smoothed = " on smoothed labels" if run.wanted.label_smoothing else ""
                what = f"The teacher, {pathlib.PurePath(run.wanted.student).name}{smoothed}"
                found[what] = f"{accuracy:.2f} %, run `{name}`"
        return found


def _from_here(path):
    """A path as it is seen from the working directory, if it lies below."""
    path, here = pathlib.Path(path).absolute(), pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def called(name):
    """What a study is called: `table 6`, or `online`."""
    return f"table {name}" if name[0].isdigit() else name


def page_of(name):
    """The file of a study's page, without its ending: `table6`."""
    return called(name).replace(" ", "")


def heading(name):
    """What stands above the page of a study: `Table 4: ImageNet`, or the title alone."""
    title = paper.STUDIES[name].title
    return f"{called(name).capitalize()}: {title}" if name[0].isdigit() else title


def write(out, results, preset, budgets):
    """Writes the page of every study of which a run is finished, since studies share runs, and that of all claims.

    Args:
        out: Folder of the runs.
        results: Folder of the pages.
        preset: Of MultiNLI's networks; that of the runs that are kept, if none of them is of this one.
        budgets: Names of those that have a part on the pages.
    """
    results, claimed = pathlib.Path(results), {budget: {} for budget in budgets}
    preset = _recorded_preset(RunStore(results / RECORDS), preset)
    for name, study in paper.STUDIES.items():
        parts, title, file_name = [], heading(name), page_of(name)
        for budget in budgets:
            scale = BUDGETS[budget](preset)[study.data]
            lines, facts = Work(study, scale, MOST_SEEDS, out, results).lines()
            if lines:
                image = f"{file_name}_{budget}.png"
                picture.plot(lines, f"{title}, budget {budget}", results / image)
                text = page.markdown(study, budget, lines, cuts(study, scale), facts)
                parts.append(f"{text}\n![Accuracies]({image})\n")
                claimed[budget][called(name)] = page.tested(lines, study)
        if parts:
            notes = [study.notes] if study.notes else []
            text = "\n\n".join([f"# {title}", f"Made by `train/tables.py --table={name}`.", *notes, "\n".join(parts)])
            artifacts.write_text(results / f"{file_name}.md", text)
    _write_claims(claimed, results)


def _recorded_preset(store, preset):
    students = {pathlib.PurePath(row["student"]).name for row in store.rows() if "--sequence_length=" in row["flags"]}
    return preset if not students or pathlib.PurePath(preset).name in students else min(students)


def _write_claims(claimed, results):
    """Writes `claims.md` if anything is measured: what tables were to show, and what they show, by budget and study."""
    parts = []
    for budget, found in claimed.items():
        if any(found.values()):
            image = f"claims_{budget}.png"
            picture.forest(found, f"Claims, budget {budget}", results / image)
            parts.append(f"## Budget `{budget}`\n\n{page.overview(found)}\n![Differences]({image})\n")
    if parts:
        text = "# What the tables were to show\n\nMade by `train/tables.py`.\n\n" + "\n".join(parts)
        artifacts.write_text(results / "claims.md", text)


def _figure2(work, data_dir):
    """Figure 2 of the students of table 1 whose seed is 0."""
    finished = [run for run in work.students if run.wanted.seed == 0 and run.name in work.store]
    if finished:
        students = {(run.wanted.temperature, run.arm.smoothed): work.store.get(run.name) for run in finished}
        teachers = {run.arm.smoothed: work.store.row(run.teacher)["test_accuracy"] for run in finished}
        classes = jobs.splits_of(data_dir).train.classes
        regularization_samples.write(students, teachers, classes, work.results, pathlib.Path(data_dir).stem)
    return work.results / "figure2.md"


def _figure4(work, data_dir):
    """Figure 4 of the student of KD whose seed is 0."""
    (run,) = (run for run in work.students if run.wanted.method == "kd")
    values = types.SimpleNamespace(
        data_dir=data_dir, out=str(work.results / "figure4"), split="train", temperature=None
    )
    resemblance.run(work.out / run.name, values)
    return work.results / "figure4" / "resemblance.md"


def run(values):
    """Plans, trains what is left unless only the plan or the report is asked for, and writes the page.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        ValueError: There is no such table, data are missing, or a teacher's run failed.
    """
    if values.show_flags:
        store = RunStore(pathlib.Path(values.results or RESULTS) / RECORDS)
        print("\n".join(store.get(values.show_flags).flag_lines))
        return 0
    if values.table not in NAMES:
        raise ValueError(f"--table={values.table} is none of the papers'. Expected one of {', '.join(NAMES)}.")
    study = paper.STUDIES[paper.FIGURES.get(values.table, values.table)]
    if values.table == "figure4":
        study = study._replace(arms=tuple(arm for arm in study.arms if arm.name == "KD"))
    smoke = values.budget == "smoke"
    data_dir = values.data_dir or (jobs.DIGITS if smoke and study.data == paper.CIFAR100 else None)
    results = values.results or (values.output_dir if smoke else RESULTS)
    if not values.output_dir or not (data_dir or (values.report and values.table not in paper.FIGURES)):
        raise ValueError(f"--output_dir and --data_dir are needed: a folder for the runs, and the data, {study.data}.")
    if data_dir not in (None, jobs.DIGITS) and not pathlib.Path(data_dir).exists():
        raise FileNotFoundError(f"--data_dir={data_dir} is not there.")
    scale = BUDGETS[values.budget](values.preset)[study.data]
    seeds = 1 if values.table == "figure4" else values.seeds or SEEDS[values.budget]
    work = Work(study, scale, seeds, values.output_dir, results, networks=values.table == "figure4")
    at_once = values.jobs or jobs.room()
    print(f"{values.table}, budget {values.budget}, {seeds} seeds: {work.told(at_once)}", flush=True)
    if values.plan:
        return 0
    failed = [] if values.report else work.train(data_dir, at_once)
    if values.table in paper.FIGURES:
        path = {"figure2": _figure2, "figure4": _figure4}[values.table](work, data_dir)
    else:
        of_page = ["smoke"] if smoke else [budget for budget in BUDGETS if budget != "smoke"]
        write(values.output_dir, results, values.preset, of_page)
        path = pathlib.Path(results) / f"{page_of(values.table)}.md"
    print(path if path.exists() else f"No run of {called(values.table)} is finished: there is no page.")
    return int(bool(failed))


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags of this script."""
    own = {"flag_values": flag_values}
    flags.DEFINE_string("table", None, f"One of {', '.join(NAMES)}.", **own)
    flags.DEFINE_string("show_flags", None, "Print the flags of the recorded run of this name, and stop.", **own)
    flags.DEFINE_enum("budget", "smoke", list(BUDGETS), "How much of the recipe.", **own)
    flags.DEFINE_integer("seeds", None, "Students of each arm; the budget's by default.", lower_bound=1, **own)
    flags.DEFINE_integer("jobs", None, "Runs at a time; what the device has room for by default.", lower_bound=1, **own)
    flags.DEFINE_bool("plan", False, "Only says what is left.", **own)
    flags.DEFINE_bool("report", False, "Only writes the page of what is finished.", **own)
    flags.DEFINE_string("data_dir", None, "As of the script of the data; the digits at --budget=smoke.", **own)
    flags.DEFINE_string("preset", "bert_base_en", "Of keras-nlp, for table 11: its name or its folder.", **own)
    flags.DEFINE_string("output_dir", None, "Folder of the runs.", **own)
    text = "Folder of the pages and of what is kept; --output_dir at --budget=smoke, else train/results."
    flags.DEFINE_string("results", None, text, **own)


if __name__ == "__main__":
    define_flags()
    cli.start(lambda: run(flags.FLAGS))
