"""The two stages of training, with backups from which a run resumes."""

import contextlib
import sys

import keras

from keras_wsl import callbacks, data, distribution
from keras_wsl.training.epoch_log import EpochLog, EpochPrinter
from keras_wsl.training.inputs import augmentation_kwargs


def pretrain(distiller, stage, main_losses, config, train, directory, **kwargs):
    """Train the pretraining stage and transfer what it learned. A finished stage is restored from its backup.

    Args:
        distiller: Compiled `Distiller` of the stage.
        stage: `Stage` of the recipe.
        main_losses: List of the losses of the main stage.
        config: `Config`.
        train: Training data set.
        directory: Path of the run.
        **kwargs: For `fit`.
    """
    (loss,) = distiller.distillation_losses
    frozen = _frozen_layers(distiller.student, loss, stage)
    for layer in frozen:
        layer.trainable = False
    fit(
        distiller,
        config,
        train,
        directory / "first_stage.csv",
        directory / "backups" / "first_stage",
        epochs=config.pretrain_epochs,
        extra_callbacks=[callbacks.RaiseOnNonFinite()],
        **kwargs,
    )
    for layer in frozen:
        layer.trainable = True
    if stage.transfer:
        stage.transfer(loss, main_losses[0])


def _frozen_layers(student, loss, stage):
    """Return the student's layers that are not trained in a pretraining stage."""
    trained = []
    if stage.trains == "features":
        last = loss.student_layers[-1].removesuffix("_preact")
        trained = keras.Model(student.inputs, student.get_layer(last).output).layers
    return [layer for layer in student.layers if layer.trainable and layer not in trained]


def fit(
    distiller,
    config,
    train,
    csv_path,
    backup_directory,
    *,
    backup_kwargs,
    epochs,
    verbose,
    extra_callbacks,
    soft_labels=None,
    **kwargs,
):
    """Train from the last backup to the last epoch.

    Args:
        distiller: Compiled `Distiller`.
        config: `Config`.
        train: Training data set.
        csv_path: Path of the CSV file of all epochs.
        backup_directory: Path of the backups of this stage.
        backup_kwargs: Dict for `callbacks.ExactBackupAndRestore`: what is compared on resume.
        epochs: Number of epochs.
        verbose: 0, 1, 2 or `None`, see `run`.
        extra_callbacks: List of further callbacks.
        soft_labels: `SoftLabels`, or `None`.
        **kwargs: For `Distiller.fit`.

    Returns:
        `(epoch_log, backup)`: the callbacks that have the rows of all epochs, and their history.

    Raises:
        PreemptedError: If a signal was received.
        NonFiniteLossError: If a loss is NaN or infinite; with the numbers of the examples in the training set.
    """
    steps = train.steps_per_epoch(config.batch_size)
    epoch_log = EpochLog(csv_path, [callback.table for callback in extra_callbacks if hasattr(callback, "table")])
    preemption = callbacks.PreemptionHandler()
    backup = epoch_log.backup = callbacks.ExactBackupAndRestore(
        backup_directory,
        steps,
        save_freq=config.backup_every_steps or None,
        stateful_callbacks=[epoch_log],
        preemption_handler=preemption,
        **backup_kwargs,
    )
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    printer = [EpochPrinter(epochs)] if verbose == 2 else []
    with preemption, distribution.reraise_worker_loss(config.strategy), _name_nonfinite_examples(train, config):
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
                **augmentation_kwargs(config),
            ),
            initial_epoch=backup.initial_position[0],
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,  # `train_batches` shuffles by the seed.
            callbacks=[backup, *extra_callbacks, epoch_log, *printer],
            verbose=1 if verbose == 1 else 0,
            **kwargs,
        )
    if preemption.requested:  # After the last step: `fit` had nothing left to stop.
        raise callbacks.PreemptedError(
            f"{preemption.name} was received in the last step. All epochs are saved in {backup_directory}; the results "
            "are not written yet.",
            preemption.number,
        )
    return epoch_log, backup


@contextlib.contextmanager
def _name_nonfinite_examples(train, config):
    """Add to a `NonFiniteLossError` the numbers of its examples in the training set."""
    try:
        yield
    except callbacks.NonFiniteLossError as error:
        # Unreadable image files are skipped, so that positions are not known.
        if error.examples is None or isinstance(train, data.ImageFileDataset):
            raise
        numbers = ", ".join(map(str, _nonfinite_examples(error, train, config)))
        raise callbacks.NonFiniteLossError(
            f"{error} In the training set those examples have the numbers {numbers}, from 0 on.",
            terms=error.terms,
            epoch=error.epoch,
            step=error.step,
            examples=error.examples,
        ) from error


def _nonfinite_examples(error, train, config):
    """Return the numbers, in the training set, of the examples of the last execution."""
    first, last = error.examples
    size = config.batch_size
    # `RaiseOnNonFinite` checks each execution. After a resume its range of examples begins with the epoch.
    end = -(-last // size)
    begin = max((first - 1) // size, end - config.steps_per_execution)
    batches = data.train_batches(train, seed=config.seed, batch_size=size, initial_position=(error.epoch - 1, begin))
    return [int(number) for _, (_, targets) in zip(range(begin, end), batches) for number in targets["index"]]
