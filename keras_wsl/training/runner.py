"""One run from its settings: what every script of this folder shares."""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import shutil
import sys

import keras
import numpy as np

from keras_wsl import (
    Distiller,
    callbacks,
    data,
    distribution,
    export,
    models,
    optimizers,
    soft_labels,
    teacher_checkpoints,
)
from keras_wsl.backend import predict_batch
from keras_wsl.files import make_directory, sha256, temporary_directory
from keras_wsl.training import artifacts, fingerprint, plots, recipes
from keras_wsl.training.config import to_lines
from keras_wsl.training.process_memory import peak_mib

LARGEST = {"seed": 2**32 - 1}  # Integers of a setting; others are at most 2**31 - 1, and numbers of epochs a million.
GIVEN = "teacher_logits"  # The key of the targets that has the logits of --soft_labels.


def run(config, splits, out, *, build=models.build, also=None, top_5=False, resume=False, verbose=None, source=None):
    """Trains a student as the settings say, and leaves everything in `out`.

    Args:
        settings: `Config`.
        splits: `data.Splits`, or what has `train` and `test` as it does.
        out: Folder of the results: `run.flags`, `epochs.csv`, `result.json`, `curves.png`, `student.keras`,
            `saved_model/`, `tensorboard/`, `backups/`; `first_stage.csv` of a method that has one; `checkpoints/`
            where the settings keep them.
        build: What makes a network of a name: `build(name, classes=, weights=, input_shape=, dtype=)`.
        also: Other test sets by name, for `NAME_accuracy`; none by default.
        top_5: Whether it counts too if the label is among the five classes with the highest logits.
        resume: Whether to go on with the run that is there, which then ends in the same bits.
        verbose: As of `fit`; a progress bar on a terminal, a line an epoch elsewhere.
        source: Name or path of the data, a string that `run.flags` and `result.json` keep. The data themselves are
            known by their contents: a run goes on with the same data at another place, and not with others.

    Returns:
        Dict, the content of `result.json`.

    Raises:
        ValueError: If a setting does not fit, or `out` holds something else or cannot be written to; or a run is
            resumed with other settings, data or files than it began with, or without its backups. Nothing is written
            then.
        ImportError: If the package `tensorboard` is not installed; likewise.
        OSError: If the disk is full; what was written before stays.
        TooManyCorruptImagesError: If more images cannot be read than may be left out.
        NonFiniteLossError: If a loss is NaN or infinite; the last good backup stays.
        PreemptedError: If SIGINT, SIGTERM or SIGHUP was received while it trained; the state is saved.
        KeyboardInterrupt: If SIGINT was received at another time, or a second time.
        WorkerLostError: If another worker ended while it trained.

    Of several workers the chief alone writes there; all read it to resume, and so must see the same folder.
    """
    _check(config)
    callbacks.summary_writer.import_event_files(out)  # Before anything is made or written; the first stage writes none.
    with contextlib.ExitStack() as held:
        if not distribution.is_chief(config.strategy):
            make_directory(out)
            folder = held.enter_context(temporary_directory(pathlib.Path(out, "worker")))
            out, verbose = _followed(out, folder / "run", resume), 0
        options = {"build": build, "also": also or {}, "top_5": top_5, "resume": resume, "verbose": verbose}
        return _run(config, splits, out, held, source=source, **options)


def _followed(out, own, resume):
    """A folder for what a worker that is not the chief writes; with the chief's state in it where it is to go on."""
    out = pathlib.Path(out)
    kept = (artifacts.FLAGS, "*.csv", "backups/**/*.backup") if resume else ()
    for path in [path for pattern in kept for path in sorted(out.glob(pattern))]:
        target = own / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # The chief keeps the newest ones.
            shutil.copy(path, target)
    return own


def _run(config, splits, out, held, *, build, also, top_5, resume, verbose, source):
    """What `run` says, in a folder that is `held`, an `ExitStack`, until the end."""
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        _be_deterministic()
    train, validation, test = parts(splits, config)
    _check_batches(config, train)
    recipe = recipes.of(config)
    checkpoints = _checkpoints(config)
    store = _store(config)
    with distribution.scope(config.strategy), _reading(train):
        teacher, student = _networks(config, train, build)
        named = dataclasses.replace(config, teacher=store.manifest.teacher) if store else config
        losses = recipes.main_losses(named, train, teacher, student)
        taught_by = GIVEN if store else teacher
        main_stage = distiller(config, recipe, taught_by if losses else None, student, losses, train, top_5=top_5)
        before = None
        if recipe.stage:
            stage_loss = recipes.stage_loss(config, teacher, student)
            before = first_stage(config, recipe, teacher, student, stage_loss, train)
        read = {"train": train, "validation": validation, "test": test, **also}
        contents = fingerprint.contents(config, read, store=store, checkpoints=checkpoints)
        begun = os.path.lexists(pathlib.Path(out, artifacts.FLAGS))
        out = artifacts.open_run(out, config, resume=resume, contents=contents, source=source)
        held.enter_context(artifacts.alone_in(out))
        if begun:
            _check_backups(out, recipe)
        artifacts.update_flags(out, config, contents, source)
        kept = {
            "run_fingerprint": fingerprint.identity(config, contents),
            "defaults": fingerprint.identity(type(config)(), {}),
            "conditions": artifacts.conditions() if config.deterministic else None,
        }
        if before:
            _train_first_stage(before, losses, config, train, out, kept=kept, verbose=verbose)
        one_hot = config.label_smoothing > 0
        epochs, backup = _fit(
            main_stage,
            config,
            train,
            out / "epochs.csv",
            out / "backups",
            kept=kept,
            epochs=config.epochs,
            verbose=verbose,
            observers=_observers(config, recipe, checkpoints, store, train, out),
            soft_labels=store,
            validation_data=data.eval_batches(validation or test, config.eval_batch_size, one_hot=one_hot),
            validation_freq=_evaluated_epochs(config),
        )
        result = _result(config, recipe, main_stage, backup, epochs, train, test, one_hot)
        result["teacher_sha256"] = store.manifest.file_sha256 if store else contents.get("teacher_weights")
        if store:
            result["teacher"] = store.manifest.teacher
        others = {f"{name}_accuracy": examples for name, examples in also.items()}
        result |= {name: _accuracy(student, examples, config) for name, examples in others.items()}
        if teacher is not None:
            if checkpoints:  # The student's last epoch may be an earlier one of the teacher.
                models.load_weights(teacher, config.teacher_weights)
            judged = {"accuracy": test, **others}
            result |= {f"teacher_{name}": _accuracy(teacher, part, config) for name, part in judged.items()}
        result["data"] = {"train": train.summary, "test": test.summary}
        result |= {"data_source": source, "contents": contents}
    export.save_keras(student, out / "student.keras")
    try:
        export.export_saved_model(student, out / "saved_model", preprocessor=_preprocessor(train), overwrite=True)
    except ImportError as error:
        print(error)
    plots.plot(
        {_short(config.student): artifacts.history_rows(backup.history)}, out / "curves.png", _title(config, result)
    )
    artifacts.write_json(out / "result.json", result)
    return result


@contextlib.contextmanager
def _reading(examples):
    """Says of an error inside TensorFlow's input pipeline that it was one image too many that could not be read."""
    try:
        yield
    except Exception:
        if isinstance(examples, data.ImageFileDataset):
            examples.corrupt_files.check_limit()
        raise


def _check_backups(out, recipe):
    """Raise `ValueError` if a run in a folder has trained and has no backups; print a line if it has not trained."""
    stages = {"epochs.csv": out / "backups"}
    if recipe.stage:
        stages = {"first_stage.csv": out / "backups" / "first_stage", **stages}
    for table, backups in stages.items():
        results = ("student.keras", "result.json") if table == "epochs.csv" else ()
        written = [out / name for name in (table, *results) if os.path.lexists(out / name)]
        if written and not any(backups.glob("*.backup")):
            raise ValueError(
                f"{backups} must hold the backups of this run, as it has written {written[0]}. Received: no backup. "
                f"Restore {backups} to resume the run, or remove {out} to start it again."
            )
    if not any(out.glob("backups/**/*.backup")):
        print(f"{out} holds no backup: the run starts from its first step.")


def _train_first_stage(model, losses, config, train, out, **kwargs):
    """Trains what the method's first stage trains, and hands it over; a finished one is only restored."""
    stage, (loss,) = recipes.of(config).stage, model.distillation_losses
    frozen = _frozen(model.student, loss, stage)
    for layer in frozen:
        layer.trainable = False
    _fit(
        model,
        config,
        train,
        out / "first_stage.csv",
        out / "backups" / "first_stage",
        epochs=config.pretrain_epochs,
        observers=[callbacks.RaiseOnNonFinite()],
        **kwargs,
    )
    for layer in frozen:
        layer.trainable = True
    if stage.hand_over:
        stage.hand_over(loss, losses[0])


def _frozen(student, loss, stage):
    """The student's layers that do not learn in a first stage."""
    learning = []
    if stage.trains == "features":
        last = loss.student_layers[-1].removesuffix("_preact")
        learning = keras.Model(student.inputs, student.get_layer(last).output).layers
    return [layer for layer in student.layers if layer.trainable and layer not in learning]


def _fit(distiller, config, train, table, backups, *, kept, epochs, verbose, observers, soft_labels=None, **kwargs):
    """Trains for so many epochs, from the last backup on; returns what keeps the epochs' rows, and the backup."""
    steps = train.steps_per_epoch(config.batch_size)
    rows = artifacts.Epochs(table, [observer.table for observer in observers if hasattr(observer, "table")])
    termination = callbacks.PreemptionHandler()
    backup = rows.backup = callbacks.ExactBackupAndRestore(
        backups,
        steps,
        save_freq=config.backup_every_steps or None,
        stateful_callbacks=[rows],
        preemption_handler=termination,
        **kept,
    )
    with termination, distribution.reraise_worker_loss(config.strategy), _numbering(train, config):
        distribution.check_workers_agree(config.strategy, "backups", backup.initial_position)
        # With no epoch left, `fit` restores the finished run and trains nothing.
        distiller.fit(
            data.train_batches(
                train,
                seed=config.seed,
                batch_size=config.batch_size,
                initial_position=backup.initial_position,
                one_hot=config.label_smoothing > 0,
                num_views=config.num_views or None,
                soft_labels=soft_labels,
                **augmentation(config),
            ),
            initial_epoch=backup.initial_position[0],
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,  # The batches are, by their seed.
            callbacks=[backup, *observers, rows],
            verbose=verbose if verbose is not None else (1 if sys.stdout.isatty() else 2),
            **kwargs,
        )
    if termination.requested:  # After the last step: `fit` had nothing left to stop.
        raise callbacks.PreemptedError(
            f"{termination.name} was received in the last step. All epochs are saved in {backups}; the results are not "
            "written yet.",
            termination.number,
        )
    return rows, backup


@contextlib.contextmanager
def _numbering(train, config):
    """Says of the examples among which a loss is not finite which ones of the training set they are."""
    try:
        yield
    except callbacks.NonFiniteLossError as error:
        if error.examples is None or isinstance(train, data.ImageFileDataset):  # Of which some may be left out.
            raise
        numbers = ", ".join(map(str, _numbers(error, train, config)))
        raise callbacks.NonFiniteLossError(
            f"{error} In the training set those examples have the numbers {numbers}, from 0 on.",
            terms=error.terms,
            epoch=error.epoch,
            step=error.step,
            examples=error.examples,
        ) from error


def _numbers(error, train, config):
    """The numbers, in the training set, of the examples of the steps that were last trained on."""
    first, last = error.examples
    size = config.batch_size
    end = -(-last // size)  # RaiseOnNonFinite checks every execution; after a resume its range begins with the epoch.
    begin = max((first - 1) // size, end - config.steps_per_execution)
    batches = data.train_batches(train, seed=config.seed, batch_size=size, initial_position=(error.epoch - 1, begin))
    return [int(number) for _, (_, targets) in zip(range(begin, end), batches) for number in targets["index"]]


def _check(config):
    recipe = recipes.of(config)
    if recipe.needs_teacher and not (config.teacher and config.teacher_weights) and not config.soft_labels:
        raise ValueError(
            f"--method={config.method} needs a trained teacher: pass --teacher and --teacher_weights. Train one with "
            "--method=none; its student.keras is such a file."
        )
    if not recipe.needs_teacher and (config.teacher or config.teacher_weights or config.soft_labels):
        raise ValueError(
            f"--method={config.method} has no teacher: leave --teacher, --teacher_weights and --soft_labels out."
        )
    if config.soft_labels:
        _check_soft_labels(config, recipe)
    _check_numbers(config)
    if config.weighting and not recipe.needs_teacher:
        raise ValueError(
            f"--weighting={config.weighting} compares with a teacher, and --method={config.method} has none."
        )
    if config.online and not recipe.counted:
        raise ValueError(
            f"--online is for methods with a teacher in every epoch, and --method={config.method} has none there."
        )
    if config.teacher_checkpoints and not config.online:
        raise ValueError("--teacher_checkpoints are for --online. Add it, or leave them out.")
    if config.keep_probability and not config.weighting:
        raise ValueError(
            f"--keep_probability={config.keep_probability} is of a weighting, and none is asked for. Pass "
            "--weighting=exclude_regularization_samples, or leave it out."
        )
    for name, known in (("optimizer", ("sgd", "bert_adamw")), ("schedule", ("steps", "linear"))):
        if getattr(config, name) not in known:
            raise ValueError(f"--{name}={getattr(config, name)} is unknown. Expected one of {', '.join(known)}.")
    if not 0 <= config.lr_warmup_fraction < 1:
        raise ValueError(f"--lr_warmup_fraction={config.lr_warmup_fraction} must be a part of all steps, in [0, 1).")
    strategies = config.strategy != "none" and keras.backend.backend() == "tensorflow"
    if strategies and config.steps_per_execution > 1:
        raise ValueError(
            f"--steps_per_execution={config.steps_per_execution} fails in Keras under a strategy. Use 1 with "
            f"--strategy={config.strategy}."
        )


def _check_batches(config, train):
    """Raises `ValueError` where an epoch does not divide as it must, before `run.flags` is written."""
    together, steps = config.steps_per_execution, train.steps_per_epoch(config.batch_size)
    for name, count in (("the steps of an epoch", steps), ("--backup_every_steps", config.backup_every_steps)):
        if count % together:
            raise ValueError(
                f"--steps_per_execution={together} must divide {name}, {count}. Choose a divisor of it, or 1."
            )
    left = len(train) % config.batch_size
    if config.strategy == "tpu" and left:  # Its step is compiled for one shape.
        raise ValueError(
            f"--strategy=tpu needs batches of one size, and {len(train)} training examples leave {left} over at "
            f"--batch_size={config.batch_size}. Pass --max_train_examples={len(train) - left}, or another --batch_size."
        )


def _check_numbers(config):
    """Raises `ValueError` for numbers with which a run would end late, or as if they had not been given."""
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name}={value} must be a finite number. Leave it out for its default.")
        largest = LARGEST.get(name, 10**6 if name.endswith("epochs") else 2**31 - 1)
        integers = [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, int)]
        if max(integers, default=0) > largest:
            raise ValueError(f"--{name} must be at most {largest:,}. Received: --{name}={max(integers):.6g}.")
        if isinstance(value, str) and len(value.splitlines()) > 1:
            raise ValueError(f"--{name} must be one line. Received: --{name}={value!r}.")
    epochs = config.decay_epochs
    if any(epoch < 1 for epoch in epochs) or any(one >= other for one, other in itertools.pairwise(epochs)):
        raise ValueError(
            f"--decay_epochs={','.join(map(str, epochs))} must rise, from 1 on. Give each epoch once, in order."
        )
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(
            f"--label_smoothing={config.label_smoothing} must be in [0, 1): the part that the label's class gives up."
        )
    try:
        keras.dtype_policies.get(config.dtype_policy)
    except ValueError as error:
        raise ValueError(
            f"--dtype_policy={config.dtype_policy} is no dtype policy of Keras. Expected one such as float32, "
            "mixed_float16 or mixed_bfloat16."
        ) from error


def _check_soft_labels(config, recipe):
    """Raises `ValueError` for what needs a teacher that runs."""
    needs = {
        "--online": config.online,
        "--teacher_batch_statistics": config.teacher_batch_statistics or recipe.teacher_batch_statistics,
        f"--method={config.method}, which has a first stage,": recipe.stage,
    }
    for name, needed in needs.items():
        if needed:
            raise ValueError(f"{name} needs a teacher that runs, and --soft_labels has its logits alone.")


def _be_deterministic():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def parts(splits, config):
    """What is trained on, what each epoch is judged on (`None`: the test set), and the test set."""
    train, test = splits.train, splits.test
    validation = None
    if config.validation_examples:
        train, validation = train.stratified_split(config.validation_examples, seed=config.seed)
    if config.max_train_examples:
        train = train.stratified_subset(config.max_train_examples, seed=config.seed)
    return train, validation, test


def augmentation(config):
    """What a run changes in the augmentation that is its data set's own: a dict."""
    return {} if config.padding_mode == "constant" else {"padding_mode": config.padding_mode}


def _checkpoints(config):
    """The checkpoints that teach one after the other, or `None`."""
    if not config.online:
        return None
    default = pathlib.Path(config.teacher_weights).parent / "checkpoints"
    return teacher_checkpoints.Checkpoints(config.teacher_checkpoints or default)


def _store(config):
    """The soft labels that teach, or `None`.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file is missing or not whole, or they are of another teacher than the settings'.
    """
    if not config.soft_labels:
        return None
    store = soft_labels.SoftLabels(config.soft_labels)
    for name, here, wanted in (
        ("teacher", store.manifest.teacher, config.teacher),
        ("teacher_weights", store.manifest.file_sha256, config.teacher_weights and sha256(config.teacher_weights)),
    ):
        if wanted and here != wanted:
            raise ValueError(
                f"--soft_labels={config.soft_labels} are of another teacher: --{name} is {wanted!r}, and theirs "
                f"{here!r}. Leave --{name} out, or write soft labels of it."
            )
    return store


def _networks(config, train, build):
    """The teacher, or `None` where there is none or it need not run, and the student."""
    options = {"classes": len(train.classes), "input_shape": train.input_shape, "dtype": config.dtype_policy}
    teacher = None
    if config.teacher and not config.soft_labels:
        teacher = build(config.teacher, weights=config.teacher_weights, **options, **config.teacher_options())
    # After the teacher, which draws initial weights too: the student's depend on the seed alone.
    keras.utils.set_random_seed(config.seed)
    weights = config.student_weights or None
    return teacher, build(config.student, weights=weights, **options, **config.student_options())


def distiller(config, recipe, teacher, student, losses, train, *, top_5=False):
    """Student and teacher in a compiled Distiller, for the main stage of a method."""
    weight = config.student_loss_weight
    model = Distiller(
        teacher,
        student,
        losses,
        student_loss_weight=recipe.student_loss_weight if weight is None else weight,
        teacher_batch_statistics=config.teacher_batch_statistics or recipe.teacher_batch_statistics,
    )
    _compile(model, config, train, config.epochs, top_5=top_5)
    return model


def first_stage(config, recipe, teacher, student, loss, train):
    """Likewise for the stage before, in which the loss is alone and the learning rate does not decay."""
    training = config.teacher_batch_statistics or recipe.teacher_batch_statistics
    model = Distiller(
        teacher, student, loss, student_loss_weight=0.0, teacher_batch_statistics=training, name="first_stage"
    )
    rate = recipe.stage.learning_rate or config.learning_rate
    flat = dataclasses.replace(config, learning_rate=rate, schedule="steps", decay_epochs=())
    _compile(model, flat, train, config.pretrain_epochs)
    return model


def _compile(distiller, config, train, epochs, *, top_5=False):
    smoothing = config.label_smoothing
    metrics = ["accuracy"]
    if top_5:
        kind = "TopKCategoricalAccuracy" if smoothing else "SparseTopKCategoricalAccuracy"
        metrics.append(getattr(keras.metrics, kind)(5, name="top_5_accuracy"))
    distiller.compile(
        _optimizer(config, train.steps_per_epoch(config.batch_size), epochs),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        if smoothing
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=metrics,
        steps_per_execution=config.steps_per_execution,
    )


def _optimizer(config, steps, epochs):
    rate, decay, clip = _learning_rate(config, steps, epochs), config.weight_decay or None, config.global_clipnorm
    if config.optimizer == "sgd":
        return optimizers.SGD(
            rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
            global_clipnorm=clip or None,
        )
    return optimizers.bert_adamw(rate, weight_decay=decay, global_clipnorm=clip or None)


def _learning_rate(config, steps, epochs):
    """A schedule of the optimizer's steps, so that it needs no state.

    Divided by ten after each of the epochs; or linear, up in the first part of all steps and down to 0 in the rest.
    """
    if config.schedule == "linear":
        warm_up = int(config.lr_warmup_fraction * steps * epochs)
        return optimizers.LinearWarmupDecay(config.learning_rate, warmup_steps=warm_up, steps=steps * epochs)
    boundaries = [epoch * steps - 1 for epoch in config.decay_epochs]  # Keras: the last step of the old value.
    values = [config.learning_rate / 10**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values) if boundaries else values[0]


def _evaluated_epochs(config):
    """What `fit` takes as `validation_freq`: a period, or a list of epochs."""
    if config.epochs % config.eval_every == 0:
        return config.eval_every
    return [*range(config.eval_every, config.epochs, config.eval_every), config.epochs]


def _observers(config, recipe, checkpoints, store, train, out):
    observers = [callbacks.RaiseOnNonFinite()]
    if checkpoints:
        observers.append(callbacks.TeacherSchedule(checkpoints, config.teacher_update_epochs))
    if config.checkpoint_every:
        observers.append(callbacks.PeriodicCheckpoint(out / "checkpoints", config.checkpoint_every))
    warm_up = recipe.warm_up if config.warmup_epochs is None else config.warmup_epochs
    if warm_up:
        observers.append(callbacks.DistillationWarmup(warm_up))
    if recipe.counted:
        batches = _clean_batches(config, store, train)
        observers.append(callbacks.RegularizationSamples(out / "tensorboard", batches))
    return [*observers, callbacks.TensorBoardScalars(out / "tensorboard")]


def _clean_batches(config, store, train):
    """Batches of clean examples; `None` where soft labels have no logits of such."""
    if store and not store.manifest.include_unaugmented:
        return None
    clean_examples = train.stratified_subset(min(config.clean_examples, len(train)))
    batches = data.eval_batches(clean_examples, config.eval_batch_size, soft_labels=store, pipeline="numpy")
    if isinstance(batches, keras.utils.PyDataset):  # What is in memory; files are read again.
        batches = [batches[i] for i in range(len(batches))]
    return batches


def _result(config, recipe, main_stage, backup, epochs, train, test, one_hot):
    """The content of `result.json`."""
    rows = artifacts.history_rows(backup.history)
    last, best = rows[-1], max((row for row in rows if "val_accuracy" in row), key=lambda row: row["val_accuracy"])
    final = {name.removeprefix("val_"): last[name] for name in last if name.endswith("accuracy") and "val_" in name}
    if config.validation_examples:  # Else each epoch was judged on the test set.
        batches = data.eval_batches(test, config.eval_batch_size, one_hot=one_hot)
        judged = main_stage.evaluate(batches, verbose=0, return_dict=True)
        final = {name: judged[name] for name in final}
    result = {
        "method": config.method,
        "extra_losses": ",".join(config.extra_losses) or None,
        "weighting": config.weighting or None,
        "student": config.student,
        "teacher": config.teacher or None,
        "seed": config.seed,
        "epochs": len(rows),
        "teacher_update_epochs": config.teacher_update_epochs if config.online else None,
        "pretrain_epochs": config.pretrain_epochs if recipe.stage else 0,
        "train_examples": len(train),
        "test_examples": len(test),
        "eval_split": f"{config.validation_examples} held-out training examples"
        if config.validation_examples
        else "the test set",
        **{f"test_{name}": value for name, value in final.items()},
        "final_accuracy": last["val_accuracy"],
        "best_accuracy": best["val_accuracy"],
        "best_epoch": best["epoch"],
        "parameters": sum(math.prod(variable.shape) for variable in main_stage.student.trainable_variables),
        "adapter_parameters": sum(
            math.prod(variable.shape)
            for loss in main_stage.distillation_losses
            for variable in loss.trainable_variables
        ),
        "seconds": round(epochs.seconds, 1),
        "peak_memory_mib": int(peak_mib()),
    }
    if recipe.counted:
        result["last_epoch"] = {name: last[name] for name in last if "regularization" in name or "wsl_weight" in name}
    return {**result, **artifacts.environment(), "config": to_lines(config)}


def _accuracy(model, examples, config):
    """The share of the examples, of those that can be read, whose label has the highest logit."""
    right = []
    for inputs, targets in data.eval_batches(examples, config.eval_batch_size):
        right.append(np.argmax(predict_batch(model, inputs), -1) == np.asarray(targets["labels"]))
    return float(np.concatenate(right).mean())


def _preprocessor(examples):
    """What servers put before the student; `None` where a model cannot do it, which is said."""
    if keras.backend.backend() == "torch":  # A SavedModel has one endpoint there.
        return None
    try:
        return examples.preprocessor()
    except ValueError as error:
        print(f"saved_model/ has no serve_raw. {error}")
        return None


def _title(config, result):
    taught = f"{_short(config.teacher)} to " if config.teacher else ""
    return f"{taught}{_short(config.student)}, {config.method}, seed {config.seed}: {result['final_accuracy']:.2%}"


def _short(name):
    """A network's name; of a preset that is a folder, the last part of it."""
    return pathlib.PurePath(name).name
