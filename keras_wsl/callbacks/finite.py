"""Stops a run at the first loss that is not a number."""

import math

import keras
import numpy as np


class NonFiniteLoss(FloatingPointError):
    """A logged value, or a weight that was to be saved, is NaN or infinite.

    Args:
        message: What is not finite, where, and what to do.
        terms: Names of the log entries or variables concerned, the terms of a sum before the sum.
        epoch: Integer, counted from 1 as in Keras's progress bar.
        step: Integer, steps done in this epoch; None at an epoch's end.
    """

    def __init__(self, message, *, terms, epoch, step):
        super().__init__(message)
        self.terms, self.epoch, self.step = list(terms), epoch, step


class FiniteLoss(keras.callbacks.Callback):
    """Raises `NonFiniteLoss` as soon as a logged value is NaN or infinite.

    Keras logs running means of the epoch, in which a NaN stays, so checking every n-th step misses nothing and only
    reports it later. `Backup` saves at the beginning of the next step, which is not reached: the last good state
    stays. With both, let `Backup`'s `every` be a multiple of this one's.

    Args:
        every: Positive integer, steps between two checks. All logs, those of the validation too, are also checked at
            the end of each epoch.

    Raises:
        NonFiniteLoss: A logged value is not finite. Its message names the terms before their sum `"loss"`, and the
            epoch and step, both counted from 1.
        ValueError: `every` is not a positive integer.
    """

    def __init__(self, every=1):
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"FiniteLoss: every={every!r} came, a positive integer was expected. Pass every=1.")
        self.every = every
        self._epoch, self._due = 0, every

    def on_epoch_begin(self, epoch, logs=None):
        """Counts steps from here."""
        self._epoch, self._due = epoch, self.every

    def on_train_batch_end(self, batch, logs=None):
        """Checks the running logs, where a check is due."""
        # Not a remainder: with steps_per_execution only some of the steps are seen.
        if batch + 1 >= self._due:
            self._due = batch + 1 + self.every - (batch + 1) % self.every
            self._check(logs or {}, batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        """Checks the epoch's logs, those of the validation too."""
        self._check(logs or {}, None)

    def _check(self, logs, step):
        # On the way of every step: nothing is made unless something is wrong.
        for value in logs.values():
            if not _is_finite(value):
                self._raise(logs, step)

    def _raise(self, logs, step):
        terms = [name for name, value in logs.items() if not _is_finite(value)]
        terms.sort(key=lambda name: name in ("loss", "val_loss"))  # Stable: the sum last, it only inherits.
        values = ", ".join(f"{name}={logs[name]}" for name in terms)
        place = "at the end" if step is None else f"step {step}"
        updates = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        raise NonFiniteLoss(
            f"FiniteLoss: {values}, epoch {self._epoch + 1}, {place} (both counted from 1, steps of a resumed epoch "
            f"from where it was resumed; the optimizer has made {updates} updates in all). Finite values were "
            "expected. Lower the learning rate or warm it up, clip gradients (clipnorm), lower the weight of the term "
            "named first, or look for non-finite inputs; then go on from the last backup, which was saved before this.",
            terms=terms,
            epoch=self._epoch + 1,
            step=step,
        )


def _is_finite(value):
    """Whether a log entry is finite, all of it; what is no number (text) has nothing to check."""
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        return bool(np.isfinite(np.asarray(value, dtype=float)).all())
    except (TypeError, ValueError):
        return True
