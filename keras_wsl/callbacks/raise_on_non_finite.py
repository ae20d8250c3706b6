"""A callback that stops a run at the first NaN or infinite loss."""

import math

import keras
import numpy as np


class NonFiniteLossError(FloatingPointError):
    """A logged value, or a weight to be saved, is NaN or infinite.

    Args:
        message: What is not finite, where, and the remedy.
        terms: Names of the log entries or variables, the terms of a sum before the sum.
        epoch: Integer, counted from 1 as in Keras's progress bar.
        step: Integer, the number of steps in this epoch; `None` at the end of an epoch.
        examples: `(first, last)`, integers: the range of the epoch's examples in which the value occurred, in training
            order, counted from 1. `None` if it is unknown, or if the value did not occur in a training step.
    """

    def __init__(self, message, *, terms, epoch, step, examples=None):
        super().__init__(message)
        self.terms, self.epoch, self.step, self.examples = list(terms), epoch, step, examples


class RaiseOnNonFinite(keras.callbacks.Callback):
    """Raise `NonFiniteLossError` as soon as a logged value is NaN or infinite.

    Keras logs running means of the epoch, in which a NaN persists. Checking only every n-th step therefore misses
    nothing and only reports later. `ExactBackupAndRestore` saves at the beginning of the next step, which is not
    reached, so the last finite state is kept. If both are used, its `save_freq` must be a multiple of `every_steps`.

    The error names the range of examples since the previous check: with `every_steps=1` the batch, whatever its size.
    At the first check after a resume inside an epoch, the range starts at the beginning of the epoch.

    Args:
        every_steps: Positive integer, the number of steps between two checks. The last step of an epoch is also
            checked, and at the end of an epoch all logs including those of the validation.

    Raises:
        NonFiniteLossError: If a logged value is not finite. The message names the terms before their sum `"loss"`, the
            epoch, the step and the examples, all counted from 1.
        ValueError: If `every_steps` is not a positive integer.
    """

    def __init__(self, every_steps=1):
        super().__init__()
        if not isinstance(every_steps, int) or every_steps < 1:
            raise ValueError(
                f"`every_steps` must be a positive integer. Received: every_steps={every_steps!r}. Pass at least 1."
            )
        self.every_steps = every_steps
        self._epoch, self._next_check, self._examples_seen = 0, every_steps, None

    def on_epoch_begin(self, epoch, logs=None):
        """Reset the counts of steps and examples."""
        self._epoch, self._next_check, self._examples_seen = epoch, self.every_steps, 0

    def on_train_batch_end(self, batch, logs=None):
        """Check the running logs every `every_steps` steps."""
        # Not a remainder: with steps_per_execution this is called for some of the steps only.
        if batch + 1 >= self._next_check or batch + 1 == (self.params or {}).get("steps"):
            self._next_check = batch + 1 + self.every_steps - (batch + 1) % self.every_steps
            previously_seen, self._examples_seen = self._examples_seen, _count_examples(self._model)
            self._check(logs or {}, batch + 1, previously_seen)

    def on_epoch_end(self, epoch, logs=None):
        """Check the epoch's logs, including those of the validation."""
        self._check(logs or {}, None)

    def _check(self, logs, step, previously_seen=None):
        # Runs in every step, so it allocates nothing unless a value is not finite.
        for value in logs.values():
            if not _is_finite(value):
                self._raise(logs, step, previously_seen)

    def _raise(self, logs, step, previously_seen):
        terms = [name for name, value in logs.items() if not _is_finite(value)]
        terms.sort(key=lambda name: name in ("loss", "val_loss"))  # Stable: the sum last, because it inherits the NaN.
        values = ", ".join(f"{name}={logs[name]}" for name in terms)
        place, examples = "at the end" if step is None else f"step {step}", None
        if previously_seen is not None and self._examples_seen is not None:
            examples = previously_seen + 1, self._examples_seen
            place += f" among examples {examples[0]} to {examples[1]} of the epoch"
        updates = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        raise NonFiniteLossError(
            f"Logged values must be finite. Received: {values}, epoch {self._epoch + 1}, {place} (all counted from 1, "
            f"steps of a resumed epoch from where it was resumed; after {updates} updates of the optimizer in total). "
            "Lower the learning rate or warm it up, clip gradients (clipnorm), lower the weight of the term named "
            "first, or look for non-finite inputs; then resume from the last backup, which was saved before this.",
            terms=terms,
            epoch=self._epoch + 1,
            step=step,
            examples=examples,
        )


def _count_examples(model):
    """Return the number of examples of this epoch so far, by which Keras weights the mean `"loss"`.

    Return `None` if there is no such mean, or if the count requires communication between workers.
    """
    mean = next((metric for metric in model.metrics if metric.name == "loss"), None)
    strategy = getattr(model, "distribute_strategy", None)
    if not isinstance(mean, keras.metrics.Mean) or getattr(strategy, "cluster_resolver", None) is not None:
        return None
    count, state = mean.count, getattr(model, "_jax_state", None)
    if state and state.get("metrics_variables") is not None:
        # On JAX, variables are stale during an epoch. `callback.model` updates all of them, which would take time in
        # every step. This reads a single number.
        index = next(i for i, variable in enumerate(model.metrics_variables) if variable is count)
        count = state["metrics_variables"][index]
    return int(keras.ops.convert_to_numpy(count))


def _is_finite(value):
    """Return whether all values of a log entry are finite; True if it is not numeric, such as text."""
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        return bool(np.isfinite(np.asarray(value, dtype=float)).all())
    except (TypeError, ValueError):
        return True
