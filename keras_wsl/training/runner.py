"""`run`: the sequence of one run."""

import contextlib
import dataclasses
import os
import pathlib
import shutil

import keras

from keras_wsl import callbacks, data, distribution, export, models
from keras_wsl.files import make_directory, temporary_directory
from keras_wsl.training import artifacts, fingerprint, plots
from keras_wsl.training.build import build_callbacks, build_distiller, build_networks, build_pretraining_distiller
from keras_wsl.training.build_losses import build_main_losses, build_stage_loss
from keras_wsl.training.epoch_log import history_rows
from keras_wsl.training.evaluation import accuracy, make_result, validation_freq
from keras_wsl.training.fitting import fit, pretrain
from keras_wsl.training.inputs import explain_unreadable, open_checkpoints, open_soft_labels, split_dataset
from keras_wsl.training.recipes import get_recipe
from keras_wsl.training.validation import validate_batches, validate_config

TEACHER_LOGITS_KEY = "teacher_logits"  # The key of the targets dict that holds the logits of --soft_labels.


def run(
    config,
    splits,
    directory,
    *,
    build=models.build,
    extra_test_sets=None,
    top_5=False,
    resume=False,
    verbose=None,
    source=None,
):
    """Train a student, evaluate it, and write the results to a directory.

    Args:
        config: `Config`.
        splits: `data.Splits`, or any object with data sets `train` and `test`.
        directory: Path of the results: `run.flags`, `epochs.csv`, `result.json`, `curves.png`, `student.keras`,
            `saved_model/`, `tensorboard/`, `backups/`; `first_stage.csv` if the method has a pretraining stage;
            `checkpoints/` if the settings ask for them.
        build: Function that builds a network by name: `build(name, classes=, weights=, input_shape=, dtype=)`.
        extra_test_sets: Dict of further test sets by name, reported as `NAME_accuracy`.
        top_5: Whether to report top-5 accuracy.
        resume: Whether to resume the run in `directory`. A resumed run ends in the same bits as an uninterrupted one.
        verbose: 0 (silent), 1 (progress bar) or 2 (one line per epoch). 1 on a terminal and 2 elsewhere by default.
        source: Name or path of the data, recorded in `run.flags` and `result.json`. The data are identified by their
            contents: a run can be resumed with the same data at another place, and not with other data.

    Returns:
        Dict, the content of `result.json`.

    Raises:
        ValueError: If a setting is invalid; or `directory` cannot be written to or holds anything but this run; or a
            run is resumed with other settings, data or files, or without its backups. Nothing is written.
        ImportError: If the package `tensorboard` is not installed. Nothing is written.
        OSError: If the disk is full. What was written before stays.
        TooManyCorruptImagesError: If more images are unreadable than may be skipped.
        NonFiniteLossError: If a loss is NaN or infinite. The last good backup stays.
        PreemptedError: If SIGINT, SIGTERM or SIGHUP was received in training. The state is saved.
        KeyboardInterrupt: If SIGINT was received at another time, or a second time.
        WorkerLostError: If another worker ended in training.

    With several workers only the chief writes to `directory`. All read it to resume, so it must be shared.
    """
    validate_config(config)
    callbacks.summary_writer.import_event_files(directory)  # Fails without TensorBoard before anything is written.
    with contextlib.ExitStack() as stack:
        if not distribution.is_chief(config.strategy):
            directory, verbose = stack.enter_context(_worker_directory(directory, resume)), 0
        return _run(
            config,
            splits,
            directory,
            stack,
            build=build,
            extra_test_sets=extra_test_sets or {},
            top_5=top_5,
            resume=resume,
            verbose=verbose,
            source=source,
        )


def _run(config, splits, directory, stack, *, build, extra_test_sets, top_5, resume, verbose, source):
    """Do what `run` describes; `stack` holds the lock of the directory until the run ends."""
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        _enable_determinism()
    train, validation, test = split_dataset(splits, config)
    validate_batches(config, train)
    recipe = get_recipe(config)
    checkpoints = open_checkpoints(config)
    store = open_soft_labels(config)
    with distribution.scope(config.strategy), explain_unreadable(train):
        # Networks and losses. Nothing is written before they are built.
        teacher, student = build_networks(config, train, build)
        named = dataclasses.replace(config, teacher=store.manifest.teacher) if store else config
        losses = build_main_losses(named, train, teacher, student)
        teacher_or_key = (TEACHER_LOGITS_KEY if store else teacher) if losses else None
        distiller = build_distiller(config, recipe, teacher_or_key, student, losses, train, top_5=top_5)
        pretraining = None
        if recipe.stage:
            loss = build_stage_loss(config, teacher, student)
            pretraining = build_pretraining_distiller(config, recipe, teacher, student, loss, train)

        # The directory.
        datasets = {"train": train, "validation": validation, "test": test, **extra_test_sets}
        contents = fingerprint.contents(config, datasets, store=store, checkpoints=checkpoints)
        exists = os.path.lexists(pathlib.Path(directory, artifacts.FLAGS))
        directory = artifacts.open_run_directory(directory, config, resume=resume, contents=contents, source=source)
        stack.enter_context(artifacts.lock_run(directory))
        if exists:
            artifacts.check_backups(directory, has_stage=recipe.stage is not None)
        artifacts.update_flags(directory, config, contents, source)

        # Training.
        backup_kwargs = {
            "run_fingerprint": fingerprint.identity(config, contents),
            "defaults": fingerprint.identity(type(config)(), {}),
            "conditions": artifacts.conditions() if config.deterministic else None,
        }
        options = {"backup_kwargs": backup_kwargs, "verbose": verbose}
        if pretraining:
            pretrain(pretraining, recipe.stage, losses, config, train, directory, **options)
        eval_kwargs = {"one_hot": config.label_smoothing > 0}
        epoch_log, backup = fit(
            distiller,
            config,
            train,
            directory / "epochs.csv",
            directory / "backups",
            epochs=config.epochs,
            extra_callbacks=build_callbacks(config, recipe, checkpoints, store, train, directory),
            soft_labels=store,
            validation_data=data.eval_batches(validation or test, config.eval_batch_size, **eval_kwargs),
            validation_freq=validation_freq(config),
            **options,
        )

        # Evaluation.
        result = make_result(config, recipe, distiller, epoch_log, train, test)
        result["teacher_sha256"] = store.manifest.file_sha256 if store else contents.get("teacher_weights")
        if store:
            result["teacher"] = store.manifest.teacher
        test_sets = {f"{name}_accuracy": examples for name, examples in extra_test_sets.items()}
        result |= {name: accuracy(student, examples, config) for name, examples in test_sets.items()}
        if teacher is not None:
            if checkpoints:  # The last epoch may have used an earlier checkpoint of the teacher.
                models.load_weights(teacher, config.teacher_weights)
            test_sets = {"accuracy": test, **test_sets}
            result |= {f"teacher_{name}": accuracy(teacher, part, config) for name, part in test_sets.items()}
        result["data"] = {"train": train.summary, "test": test.summary}
        result |= {"data_source": source, "contents": contents}
    _export(student, train, directory)
    rows = history_rows(backup.history)
    plots.plot({_short_name(config.student): rows}, directory / "curves.png", _title(config, result))
    artifacts.write_json(directory / "result.json", result)
    return result


@contextlib.contextmanager
def _worker_directory(directory, resume):
    """Yield a temporary directory for a worker that is not the chief, with the chief's state in it on resume."""
    directory = pathlib.Path(directory)
    make_directory(directory)
    with temporary_directory(directory / "worker") as temporary:
        patterns = (artifacts.FLAGS, "*.csv", "backups/**/*.backup") if resume else ()
        for path in [path for pattern in patterns for path in sorted(directory.glob(pattern))]:
            target = temporary / "run" / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # The chief removes old backups.
                shutil.copy(path, target)
        yield temporary / "run"


def _enable_determinism():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def _export(student, train, directory):
    """Write `student.keras` and, if the backend can, `saved_model/`."""
    export.save_keras(student, directory / "student.keras")
    try:
        export.export_saved_model(student, directory / "saved_model", preprocessor=_preprocessor(train), overwrite=True)
    except ImportError as error:
        print(error)


def _preprocessor(examples):
    """Return the preprocessing of raw inputs for the SavedModel, or `None` if it cannot be part of a model."""
    if keras.backend.backend() == "torch":  # A SavedModel has one endpoint there.
        return None
    try:
        return examples.preprocessor()
    except ValueError as error:
        print(f"saved_model/ has no serve_raw. {error}")
        return None


def _title(config, result):
    teacher = f"{_short_name(config.teacher)} to " if config.teacher else ""
    return (
        f"{teacher}{_short_name(config.student)}, {config.method}, seed {config.seed}: {result['final_accuracy']:.2%}"
    )


def _short_name(network):
    """Return a network's name; the last part of a preset that is a path."""
    return pathlib.PurePath(network).name
