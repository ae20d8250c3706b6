"""The methods of `keras.Model` that users call, with checks of their arguments before work is lost."""

import contextlib
import inspect

import keras
import numpy as np

from keras_wsl.objective import validate_student_loss
from keras_wsl.validation import check_shared_variables, get_class_weights, validate_fit_inputs


class EntryPoints:
    """A mixin before `keras.Model` for `Distiller`."""

    def fit(self, x=None, y=None, *args, **kwargs):
        """Train as `keras.Model.fit` does.

        Arrays of labels and weights are checked before the first step. `class_weight` multiplies `sample_weight`, with
        every kind of data and labels except sequences; for distributions, the class with the highest probability
        counts. As in Keras, it does not count in validation.

        Raises:
            ValueError: If labels or weights have the wrong type, or are out of their range.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self._validate_arrays(y, arguments.get("sample_weight"))
        if isinstance(arguments.get("validation_data"), (list, tuple)):
            self._validate_arrays(*keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])[1:])
        with self._training(arguments.pop("class_weight", None)):
            return super().fit(**arguments)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Train on one batch as `keras.Model.train_on_batch` does; `class_weight` as in `fit`."""
        self._validate_arrays(y, sample_weight)
        with self._training(class_weight):
            return super().train_on_batch(x, y, sample_weight=sample_weight, return_dict=return_dict)

    def evaluate(self, *args, **kwargs):
        """Evaluate the student with the compiled loss and metrics; no teacher runs."""
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        self._validate_arrays(arguments.get("y"), arguments.get("sample_weight"))
        with self._with_attributes(_evaluating=True, _class_weight=None):
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Evaluate the student on one batch, see `evaluate`."""
        with self._with_attributes(_evaluating=True, _class_weight=None):
            return super().test_on_batch(*args, **kwargs)

    def make_train_function(self, force=False):
        """Refuse what would fail inside the step, when Torch and JAX have changed state already."""
        if self.teacher is None and any(loss.needs_teacher for loss in self.distillation_losses):
            raise ValueError("`distiller.teacher` must be set before `fit`. Received: None. Files do not have it.")
        if self.compiled and self.optimizer is None:
            raise ValueError("The distiller must be compiled with an optimizer before `fit`. Received: optimizer=None.")
        if self.student.built and not any(variable.trainable for variable in self.variables):
            raise ValueError(
                "The student or a loss must have trainable variables. Received: none. Set `trainable = True` on the "
                "layers that should train."
            )
        check_shared_variables(self)  # Again, because a layer may have been unfrozen.
        self.get_student_loss()
        if not np.array_equal(self._class_weight, self._traced_class_weight):
            self._traced_class_weight, force = self._class_weight, True
        return super().make_train_function(force=force)

    def make_test_function(self, force=False):
        """Refuse a compiled loss that takes probabilities."""
        self.get_student_loss()
        return super().make_test_function(force=force)

    def _validate_arrays(self, y, sample_weight=None):
        shape = self.student_features.shapes()["logits"] if self.student.built else None
        validate_fit_inputs(y, sample_weight, shape)

    @contextlib.contextmanager
    def _training(self, class_weight):
        """Weight the classes in every step, and discard the step after an error: TensorFlow cannot trace it again."""
        if class_weight is not None:
            class_weight = get_class_weights(class_weight, self.student_features.shapes()["logits"])
        with self._with_attributes(_class_weight=class_weight):
            try:
                yield
            except Exception:
                self.train_function = None
                raise

    @contextlib.contextmanager
    def _with_attributes(self, **attributes):
        previous = {name: getattr(self, name) for name in attributes}
        try:
            for name, value in attributes.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in previous.items():
                setattr(self, name, value)

    def get_student_loss(self):
        """Return the compiled loss, see `validate_student_loss`."""
        loss = validate_student_loss(self.loss if self.compiled and self._compile_loss else None)
        self._compile_loss.built = True  # Keras does not call it, and would look for its shapes at every fit.
        return loss
