"""Stops a run at the first loss that is not a number."""

import math

import keras
import numpy as np


class NonFiniteLossError(FloatingPointError):
    """A logged value, or a weight that was to be saved, is NaN or infinite.

    Args:
        message: What is not finite, where, and what to do.
        terms: Names of the log entries or variables concerned, the terms of a sum before the sum.
        epoch: Integer, counted from 1 as in Keras's progress bar.
        step: Integer, steps done in this epoch; None at an epoch's end.
        examples: `(first, last)`, integers: among which examples of the epoch it came up, in the order in which they
            were trained on, counted from 1. None where that is unknown, or it came up in no training step.
    """

    def __init__(self, message, *, terms, epoch, step, examples=None):
        super().__init__(message)
        self.terms, self.epoch, self.step, self.examples = list(terms), epoch, step, examples


class RaiseOnNonFinite(keras.callbacks.Callback):
    """Raises `NonFiniteLossError` as soon as a logged value is NaN or infinite.

    Keras logs running means of the epoch, in which a NaN stays, so checking every n-th step misses nothing and only
    reports it later. `Backup` saves at the beginning of the next step, which is not reached: the last good state
    stays. With both, let `Backup`'s `every` be a multiple of this one's.

    The examples that it names are those since the check before: with `every=1` the batch, whatever its size. At the
    first check after a run was resumed inside an epoch they are all since the epoch's beginning.

    Args:
        every: Positive integer, steps between two checks. The last step of an epoch is checked too, and all logs,
            those of the validation too, at its end.

    Raises:
        NonFiniteLossError: A logged value is not finite. Its message names the terms before their sum `"loss"`, the
        epoch
            and step, and the examples, all counted from 1.
        ValueError: `every` is not a positive integer.
    """

    def __init__(self, every=1):
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"FiniteLoss: every={every!r} came, a positive integer was expected. Pass every=1.")
        self.every = every
        self._epoch, self._due, self._trained_on = 0, every, None

    def on_epoch_begin(self, epoch, logs=None):
        """Counts steps and examples from here."""
        self._epoch, self._due, self._trained_on = epoch, self.every, 0

    def on_train_batch_end(self, batch, logs=None):
        """Checks the running logs, where a check is due."""
        # Not a remainder: with steps_per_execution only some of the steps are seen.
        if batch + 1 >= self._due or batch + 1 == (self.params or {}).get("steps"):
            self._due = batch + 1 + self.every - (batch + 1) % self.every
            before, self._trained_on = self._trained_on, _trained_on(self._model)
            self._check(logs or {}, batch + 1, before)

    def on_epoch_end(self, epoch, logs=None):
        """Checks the epoch's logs, those of the validation too."""
        self._check(logs or {}, None)

    def _check(self, logs, step, before=None):
        # On the way of every step: nothing is made unless something is wrong.
        for value in logs.values():
            if not _is_finite(value):
                self._raise(logs, step, before)

    def _raise(self, logs, step, before):
        terms = [name for name, value in logs.items() if not _is_finite(value)]
        terms.sort(key=lambda name: name in ("loss", "val_loss"))  # Stable: the sum last, it only inherits.
        values = ", ".join(f"{name}={logs[name]}" for name in terms)
        place, examples = "at the end" if step is None else f"step {step}", None
        if before is not None and self._trained_on is not None:
            examples = before + 1, self._trained_on
            place += f" among examples {examples[0]} to {examples[1]} of the epoch"
        updates = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        raise NonFiniteLossError(
            f"FiniteLoss: {values}, epoch {self._epoch + 1}, {place} (all counted from 1, steps of a resumed epoch "
            f"from where it was resumed; the optimizer has made {updates} updates in all). Finite values were "
            "expected. Lower the learning rate or warm it up, clip gradients (clipnorm), lower the weight of the term "
            "named first, or look for non-finite inputs; then go on from the last backup, which was saved before this.",
            terms=terms,
            epoch=self._epoch + 1,
            step=step,
            examples=examples,
        )


def _trained_on(model):
    """Examples of this epoch so far, an integer: what Keras weighs the mean `"loss"` by.

    `None` where there is no such mean, and where to know it takes a message between workers.
    """
    mean = next((metric for metric in model.metrics if metric.name == "loss"), None)
    strategy = getattr(model, "distribute_strategy", None)
    if not isinstance(mean, keras.metrics.Mean) or getattr(strategy, "cluster_resolver", None) is not None:
        return None
    count, state = mean.count, getattr(model, "_jax_state", None)
    if state and state.get("metrics_variables") is not None:
        # On JAX variables lag behind in an epoch. Bringing all up to date, as `callback.model` does, would take time
        # in every step; this one number is at hand.
        place = next(i for i, variable in enumerate(model.metrics_variables) if variable is count)
        count = state["metrics_variables"][place]
    return int(keras.ops.convert_to_numpy(count))


def _is_finite(value):
    """Whether a log entry is finite, all of it; what is no number (text) has nothing to check."""
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        return bool(np.isfinite(np.asarray(value, dtype=float)).all())
    except (TypeError, ValueError):
        return True
