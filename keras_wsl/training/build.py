"""The networks, optimizer, learning rate, Distillers and callbacks of a run."""

import dataclasses

import keras

from keras_wsl import callbacks, optimizers
from keras_wsl.distiller import Distiller
from keras_wsl.training.inputs import clean_batches


def build_networks(config, train, build):
    """Return the teacher, or `None` if the run needs no teacher network, and the student.

    Args:
        config: `Config`.
        train: Training data set.
        build: Function that builds a network by name, such as `models.build`.
    """
    options = {"classes": len(train.classes), "input_shape": train.input_shape, "dtype": config.dtype_policy}
    teacher = None
    if config.teacher and not config.soft_labels:
        teacher = build(config.teacher, weights=config.teacher_weights, **options, **config.teacher_options())
    # Again: the teacher draws initial weights too, and the student's must depend on the seed only.
    keras.utils.set_random_seed(config.seed)
    weights = config.student_weights or None
    return teacher, build(config.student, weights=weights, **options, **config.student_options())


def build_distiller(config, recipe, teacher, student, losses, train, *, top_5=False):
    """Return the compiled `Distiller` of the main stage."""
    weight = config.student_loss_weight
    distiller = Distiller(
        teacher,
        student,
        losses,
        student_loss_weight=recipe.student_loss_weight if weight is None else weight,
        teacher_batch_statistics=config.teacher_batch_statistics or recipe.teacher_batch_statistics,
    )
    _compile(distiller, config, train, config.epochs, top_5=top_5)
    return distiller


def build_pretraining_distiller(config, recipe, teacher, student, loss, train):
    """Return the compiled `Distiller` of the pretraining stage: one loss, no labels, a constant learning rate."""
    distiller = Distiller(
        teacher,
        student,
        loss,
        student_loss_weight=0.0,
        teacher_batch_statistics=config.teacher_batch_statistics or recipe.teacher_batch_statistics,
        name="first_stage",
    )
    rate = recipe.stage.learning_rate or config.learning_rate
    constant = dataclasses.replace(config, learning_rate=rate, schedule="steps", decay_epochs=())
    _compile(distiller, constant, train, config.pretrain_epochs)
    return distiller


def _compile(distiller, config, train, epochs, *, top_5=False):
    smoothing = config.label_smoothing
    metrics = ["accuracy"]
    if top_5:
        name = "TopKCategoricalAccuracy" if smoothing else "SparseTopKCategoricalAccuracy"
        metrics.append(getattr(keras.metrics, name)(5, name="top_5_accuracy"))
    distiller.compile(
        build_optimizer(config, train.steps_per_epoch(config.batch_size), epochs),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        if smoothing
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=metrics,
        steps_per_execution=config.steps_per_execution,
    )


def build_optimizer(config, steps, epochs):
    """Return the optimizer for a number of epochs with the given steps per epoch."""
    rate = build_learning_rate(config, steps, epochs)
    kwargs = {"weight_decay": config.weight_decay or None, "global_clipnorm": config.global_clipnorm or None}
    if config.optimizer == "sgd":
        return optimizers.SGD(rate, momentum=config.momentum, nesterov=config.nesterov, **kwargs)
    return optimizers.bert_adamw(rate, **kwargs)


def build_learning_rate(config, steps, epochs):
    """Return the learning rate: a float, or a stateless schedule over the optimizer's steps.

    `schedule="steps"` divides by ten after each of `decay_epochs`. `schedule="linear"` rises in the first
    `lr_warmup_fraction` of all steps, and then falls to 0.
    """
    if config.schedule == "linear":
        warmup_steps = int(config.lr_warmup_fraction * steps * epochs)
        return optimizers.LinearWarmupDecay(config.learning_rate, warmup_steps=warmup_steps, steps=steps * epochs)
    boundaries = [epoch * steps - 1 for epoch in config.decay_epochs]  # Keras: the last step of the old value.
    values = [config.learning_rate / 10**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values) if boundaries else values[0]


def build_callbacks(config, recipe, checkpoints, store, train, directory):
    """Return the callbacks of the main stage, except those that save its state.

    Args:
        config: `Config`.
        recipe: `Recipe`.
        checkpoints: `teacher_checkpoints.Checkpoints`, or `None`.
        store: `SoftLabels`, or `None`.
        train: Training data set.
        directory: Path of the run.
    """
    result = [callbacks.RaiseOnNonFinite()]
    if checkpoints:
        result.append(callbacks.TeacherSchedule(checkpoints, config.teacher_update_epochs))
    if config.checkpoint_every:
        result.append(callbacks.PeriodicCheckpoint(directory / "checkpoints", config.checkpoint_every))
    warmup_epochs = recipe.warmup_epochs if config.warmup_epochs is None else config.warmup_epochs
    if warmup_epochs:
        result.append(callbacks.DistillationWarmup(warmup_epochs))
    if recipe.has_teacher_in_main_stage:
        batches = clean_batches(config, store, train)
        result.append(callbacks.RegularizationSamples(directory / "tensorboard", batches))
    return [*result, callbacks.TensorBoardScalars(directory / "tensorboard")]
