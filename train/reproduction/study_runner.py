"""The runs of one study: which are finished, which are pending, and their training."""

import dataclasses
import pathlib

from keras_wsl import models, soft_labels
from keras_wsl.files import copy_atomically, make_directory
from keras_wsl.models.weights import read_network, save_weights
from keras_wsl.training.inputs import split_dataset
from reproduction import launcher, report
from reproduction.estimates import Estimator, format_seconds
from reproduction.paper_results import EXAMPLES
from reproduction.presets import plan_runs
from reproduction.run_store import RunStore
from reproduction.variants import CIFAR100

RECORDS = "records"  # Directory of the tables of finished runs, in that of the pages.


class StudyRunner:
    """The runs of one study.

    Args:
        study: `variants.Study`.
        scale: `presets.Scale` of its data set.
        num_seeds: Integer.
        output_dir: Directory of the runs.
        results_dir: Directory of the pages, of `records/`, the tables of finished runs, and of teachers' weights.
        needs_networks: Whether the students' networks are needed in addition to their numbers.
    """

    def __init__(self, study, scale, num_seeds, output_dir, results_dir, *, needs_networks=False):
        self.study, self.scale, self.needs_networks = study, scale, needs_networks
        # Relative, because the paths are recorded in the flags of runs.
        self.output_dir, self.results_dir = _make_relative(output_dir), _make_relative(results_dir)
        self.store = RunStore(self.results_dir / RECORDS)
        self.teachers, self.students = plan_runs(study, scale, num_seeds)
        for run in (*self.teachers.values(), *self.students):
            self.store.add(self.output_dir / run.name, study.data)

    def pending_runs(self):
        """Return the teachers and the students that are not trained yet: two lists of `presets.Run`."""
        students = [run for run in self.students if not self._is_finished(run)]
        needed = {run.teacher for run in students if run.teacher and not self._has_teacher(run)}
        return [run for name, run in self.teachers.items() if name in needed], students

    def _is_finished(self, run):
        if self.needs_networks:
            return (self.output_dir / run.name / "student.keras").exists()
        return run.name in self.store

    def _has_teacher(self, run):
        has_checkpoints = not run.config.online or (self.output_dir / run.teacher / "result.json").exists()
        return self.weights_path(run.teacher).exists() and has_checkpoints

    def weights_path(self, teacher):
        """Return the path of a teacher's weights: in the directory of results if they are there, else of runs."""
        path = self.results_dir / "weights" / f"{teacher}.weights.h5"
        return path if path.exists() else self.output_dir / "weights" / path.name

    def soft_labels_path(self, run):
        """Return the directory of the soft labels of a run, which all runs of its seed and teacher share."""
        return self.output_dir / "soft_labels" / f"{run.teacher}-{run.config.seed}"

    def get_config(self, run):
        """Return the `Config` of a run with the files of its teacher."""
        if run.teacher is None:
            return run.config
        files = {"teacher_weights": str(self.weights_path(run.teacher))}
        if run.config.online:
            files["teacher_checkpoints"] = str(self.output_dir / run.teacher / "checkpoints")
        if run.uses_cached_logits:
            files["soft_labels"] = str(self.soft_labels_path(run))
        return dataclasses.replace(run.config, **files)

    def train(self, data_dir, jobs):
        """Train the pending runs and return the names of those that failed.

        Args:
            data_dir: The data. See `launcher.load_splits`.
            jobs: Integer, number of processes.

        Raises:
            ValueError: If a teacher's run failed, or a directory holds a run with other settings.
            PreemptedError: If SIGINT, SIGTERM or SIGHUP was received; the runs have saved their states.
        """
        teachers, students = self.pending_runs()
        data_dir = launcher.prepare_data(data_dir, self.output_dir)
        launcher.train_all({self.output_dir / run.name: run.config for run in teachers}, data_dir, jobs=jobs)
        for run in teachers:
            self._keep_teacher(run)
        self._write_soft_labels([run for run in students if run.uses_cached_logits], data_dir)
        # A dict, because two variants may have the same run.
        runs = {self.output_dir / run.name: self.get_config(run) for run in students}

        def record(directory):
            self.store.add(directory, self.study.data)
            print(self.describe(jobs).splitlines()[0], flush=True)

        return launcher.train(runs, data_dir, jobs=jobs, after=record)

    def _keep_teacher(self, run):
        """Write a teacher's weights in float16, which all its students use."""
        self.store.add(self.output_dir / run.name, self.study.data)
        path = self.weights_path(run.name)
        make_directory(path.parent)
        save_weights(read_network(self.output_dir / run.name / "student.keras"), path)
        if self.study.data == CIFAR100 and self.results_dir != self.output_dir:
            make_directory(self.results_dir / "weights")
            copy_atomically(path, self.results_dir / "weights" / path.name)

    def _write_soft_labels(self, students, data_dir):
        """Write the soft labels of each seed's views, one view per epoch, unless they exist."""
        splits = launcher.load_splits(data_dir) if students else None
        for directory, run in {self.soft_labels_path(run): run for run in students}.items():
            train = split_dataset(splits, run.config)[0]
            options = {"classes": len(train.classes), "input_shape": train.input_shape}
            teacher = models.build(run.config.teacher, weights=self.weights_path(run.teacher), **options)
            soft_labels.write_soft_labels(
                teacher,
                train,
                directory,
                seed=run.config.seed,
                num_views=run.config.num_views or run.config.epochs,
                teacher_file=self.weights_path(run.teacher),
                verbose=2,
            )

    def describe(self, jobs):
        """Describe which runs are pending and how long they will take, in a line for all and one for each."""
        teachers, students = self.pending_runs()
        pending = list({run.name: run for run in (*teachers, *students)}.values())
        estimator = Estimator(self.store.rows(), EXAMPLES)
        seconds = {run.name: estimator.estimate(run) for run in pending}
        lines = [f"  {name}: {'unknown' if s is None else format_seconds(s)}" for name, s in seconds.items()]
        known = [s for s in seconds.values() if s is not None]
        total = f", about {format_seconds(sum(known) / jobs)} with --jobs={jobs}" if known else ""
        total += ", estimated from other devices" if known and estimator.from_other_devices else ""
        unknown = (
            f", without {len(pending) - len(known)} of unknown duration" if known and None in seconds.values() else ""
        )
        finished = len({run.name for run in self.students}) - len({run.name for run in students})
        head = (
            f"{finished} students finished; pending: {len(teachers)} teachers, {len(pending) - len(teachers)} students"
        )
        return "\n".join([f"{head}{total}{unknown}.", *lines])

    def get_results(self):
        """Return the finished runs as a list of `report.VariantResult`, and a dict of facts for the page."""
        results = {}
        for run in self.students:
            if run.name in self.store:
                key = run.pair, run.variant.name
                result = results.setdefault(key, report.VariantResult(run.variant, run.pair, {}))
                result.rows[run.config.seed] = self.store.row(run.name)
        facts = self._teacher_facts()
        for pair in dict.fromkeys(run.pair for run in self.students):
            names = dict.fromkeys(run.variant.name for run in self.students if run.pair == pair)
            if missing := [name for name in names if (pair, name) not in results]:
                facts[f"Not run, {' → '.join(pair)}"] = "; ".join(missing)
        return list(results.values()), facts

    def _teacher_facts(self):
        facts = {}
        for name, run in self.teachers.items():
            if name in self.store:
                accuracy = 100 * self.store.row(name)["test_accuracy"]
                smoothing = " with label smoothing" if run.config.label_smoothing else ""
                facts[f"Teacher, {pathlib.PurePath(run.config.student).name}{smoothing}"] = (
                    f"{accuracy:.2f} %, run `{name}`"
                )
        return facts


def _make_relative(path):
    """Return a path relative to the working directory, if it is below it."""
    path, here = pathlib.Path(path).absolute(), pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
