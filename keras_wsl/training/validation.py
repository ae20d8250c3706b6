"""Checks of a `Config`, before anything is written."""

import dataclasses
import itertools
import math

import keras

from keras_wsl.training.recipes import get_recipe

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("steps", "linear")
MAX_EPOCHS = 10**6
MAX_SEED = 2**32 - 1
MAX_INTEGER = 2**31 - 1  # Of any other setting.


def validate_config(config):
    """Check that the settings are valid and fit the method.

    Raises:
        ValueError: If a setting is out of range, or does not fit the method or another setting.
    """
    recipe = get_recipe(config)
    if recipe.needs_teacher and not (config.teacher and config.teacher_weights) and not config.soft_labels:
        raise ValueError(
            f"--method={config.method} needs a trained teacher. Pass --teacher and --teacher_weights: a run with "
            "--method=none writes such weights to student.keras."
        )
    if not recipe.needs_teacher and (config.teacher or config.teacher_weights or config.soft_labels):
        raise ValueError(
            f"--method={config.method} has no teacher: leave --teacher, --teacher_weights and --soft_labels out."
        )
    if config.soft_labels:
        _validate_soft_labels(config, recipe)
    _validate_values(config)
    _validate_combinations(config, recipe)


def validate_batches(config, train):
    """Check that the steps of an epoch fit the settings.

    Args:
        config: `Config`.
        train: Training data set.

    Raises:
        ValueError: If `steps_per_execution` does not divide the steps of an epoch or of a backup, or a TPU would get
            a smaller last batch.
    """
    divisor, steps = config.steps_per_execution, train.steps_per_epoch(config.batch_size)
    for name, count in (("the steps of an epoch", steps), ("--backup_every_steps", config.backup_every_steps)):
        if count % divisor:
            raise ValueError(
                f"--steps_per_execution={divisor} must divide {name}, {count}. Choose a divisor of it, or 1."
            )
    rest = len(train) % config.batch_size
    if config.strategy == "tpu" and rest:  # The step is compiled for one shape.
        raise ValueError(
            "--strategy=tpu needs batches of one size. Received: "
            f"{len(train)} training examples, which leave {rest} after batches of --batch_size={config.batch_size}. "
            f"Pass --max_train_examples={len(train) - rest}, or another --batch_size."
        )


def _validate_soft_labels(config, recipe):
    """Raise `ValueError` for settings that need a teacher network."""
    needs = {
        "--online": config.online,
        "--teacher_batch_statistics": config.teacher_batch_statistics or recipe.teacher_batch_statistics,
        f"--method={config.method}, which has a pretraining stage,": recipe.stage,
    }
    for name, needed in needs.items():
        if needed:
            raise ValueError(f"{name} needs a teacher network, and --soft_labels provides only its logits.")


def _validate_values(config):
    """Raise `ValueError` for single values that are out of range."""
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name}={value} must be a finite number. Leave it out for its default.")
        maximum = MAX_SEED if name == "seed" else MAX_EPOCHS if name.endswith("epochs") else MAX_INTEGER
        integers = [item for item in (value if isinstance(value, tuple) else [value]) if isinstance(item, int)]
        if max(integers, default=0) > maximum:
            raise ValueError(f"--{name} must be at most {maximum:,}. Received: --{name}={max(integers):.6g}.")
        if isinstance(value, str) and len(value.splitlines()) > 1:
            raise ValueError(f"--{name} must be one line. Received: --{name}={value!r}.")
    epochs = config.decay_epochs
    if any(epoch < 1 for epoch in epochs) or any(a >= b for a, b in itertools.pairwise(epochs)):
        raise ValueError(
            "`--decay_epochs` must be increasing integers from 1. Received: "
            f"--decay_epochs={','.join(map(str, epochs))}."
        )
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(
            f"`--label_smoothing` must be in [0, 1). Received: --label_smoothing={config.label_smoothing}."
        )
    if not 0 <= config.lr_warmup_fraction < 1:
        raise ValueError(
            f"`--lr_warmup_fraction` must be in [0, 1). Received: --lr_warmup_fraction={config.lr_warmup_fraction}."
        )
    for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if getattr(config, name) not in choices:
            raise ValueError(f"--{name}={getattr(config, name)} is unknown. Expected one of {', '.join(choices)}.")
    try:
        keras.dtype_policies.get(config.dtype_policy)
    except ValueError as error:
        raise ValueError(
            "`--dtype_policy` must be a Keras dtype policy such as float32, mixed_float16 or mixed_bfloat16. Received: "
            f"--dtype_policy={config.dtype_policy}."
        ) from error


def _validate_combinations(config, recipe):
    """Raise `ValueError` for settings that do not fit the method or each other."""
    if config.weighting and not recipe.needs_teacher:
        raise ValueError(
            f"--weighting={config.weighting} compares student and teacher, and --method={config.method} has no teacher."
        )
    if config.online and not recipe.has_teacher_in_main_stage:
        raise ValueError(
            f"--online needs a method with a teacher in the main stage. Received: --method={config.method}."
        )
    if config.teacher_checkpoints and not config.online:
        raise ValueError("--teacher_checkpoints needs --online. Add it, or leave --teacher_checkpoints out.")
    if config.keep_probability and not config.weighting:
        raise ValueError(
            f"--keep_probability={config.keep_probability} needs a weighting. Pass "
            "--weighting=exclude_regularization_samples, or leave it out."
        )
    if config.strategy != "none" and keras.backend.backend() == "tensorflow" and config.steps_per_execution > 1:
        raise ValueError(
            "Keras does not support --steps_per_execution > 1 under a tf.distribute strategy. Received: "
            f"--steps_per_execution={config.steps_per_execution}, --strategy={config.strategy}."
        )
