"""The evaluation of a trained student, and the content of `result.json`."""

import math

import numpy as np

from keras_wsl import data
from keras_wsl.backend import predict_batch
from keras_wsl.training import artifacts
from keras_wsl.training.config import to_lines
from keras_wsl.training.epoch_log import history_rows
from keras_wsl.training.process_memory import peak_mib


def validation_freq(config):
    """Return the argument `validation_freq` of `fit`: a period, or a list of epochs that contains the last."""
    if config.epochs % config.eval_every == 0:
        return config.eval_every
    return [*range(config.eval_every, config.epochs, config.eval_every), config.epochs]


def accuracy(model, examples, config):
    """Return the fraction of the readable examples whose label has the highest logit."""
    correct = []
    for inputs, targets in data.eval_batches(examples, config.eval_batch_size):
        correct.append(np.argmax(predict_batch(model, inputs), -1) == np.asarray(targets["labels"]))
    return float(np.concatenate(correct).mean())


def make_result(config, recipe, distiller, epoch_log, train, test):
    """Return the content of `result.json` that a run's settings, epochs and student determine.

    Args:
        config: `Config`.
        recipe: `Recipe`.
        distiller: Trained `Distiller`.
        epoch_log: `EpochLog` of the main stage.
        train: Training data set.
        test: Test data set.
    """
    rows = history_rows(epoch_log.backup.history)
    last, best = rows[-1], max((row for row in rows if "val_accuracy" in row), key=lambda row: row["val_accuracy"])
    final = {name.removeprefix("val_"): last[name] for name in last if name.endswith("accuracy") and "val_" in name}
    if config.validation_examples:  # Otherwise each epoch was evaluated on the test set.
        batches = data.eval_batches(test, config.eval_batch_size, one_hot=config.label_smoothing > 0)
        evaluated = distiller.evaluate(batches, verbose=0, return_dict=True)
        final = {name: evaluated[name] for name in final}
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
        "parameters": _count(distiller.student.trainable_variables),
        "adapter_parameters": sum(_count(loss.trainable_variables) for loss in distiller.distillation_losses),
        "seconds": round(epoch_log.seconds, 1),
        "peak_memory_mib": int(peak_mib()),
    }
    if recipe.has_teacher_in_main_stage:
        result["last_epoch"] = {name: last[name] for name in last if "regularization" in name or "wsl_weight" in name}
    return {**result, **artifacts.environment(), "config": to_lines(config)}


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)
