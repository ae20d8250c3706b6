"""The arms on Keras. Each function of a `Case` makes what it measures and gives `run(steps)`.

`run` gives the number of steps that it did where it is another than it was asked for.
"""

import contextlib
import itertools
import tempfile

import keras

from benchmarks import by_hand, rewritten
from benchmarks.case import ALPHA, KD_SHARE, LEARNING_RATE, MOMENTUM, PRODUCT, TEMPERATURE, WEIGHT_DECAY
from keras_wsl import Distiller, data, losses, models, optimizers, soft_labels
from keras_wsl.teachers import Teachers

LOSSES = ("wsl", "at", "dist", "sp", "pkt", "dkd", "rkd", "cc")  # In the order in which `distiller` adds them.
EVALUATED = 20  # Batches in an evaluation at least, as many as CIFAR-100's test set has of 500.
REPEAT = 50  # Batches of the pipeline in what counts as a step: one alone is too short to be timed.


class QuietDistiller(Distiller):
    """A `Distiller` that counts and averages nothing."""

    def update_step_metrics(self, *args, **kwargs):
        """Do nothing."""


class _CompiledTeachers(Teachers):
    def __call__(self, inputs, targets=None, training=None):
        import tensorflow as tf

        return tf.function(super().__call__, jit_compile=True)(inputs, None, training)


class CompiledTeacherDistiller(Distiller):
    """A `Distiller` whose teacher is compiled by XLA, and not the rest of the step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teachers.__class__ = _CompiledTeachers


def networks(case, dtype=None):
    """A teacher and a student with random weights, the same at every call."""
    keras.utils.set_random_seed(0)
    return [
        models.build(name, case.classes, input_shape=case.shape, dtype=dtype) for name in (case.teacher, case.student)
    ]


def compiled(model, *, metrics=("accuracy",), **config):
    """The model, compiled with the recipe of CIFAR-100."""
    optimizer = optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=list(metrics), **config)
    return model


def feeder(case, prefetch=2):
    """A function that gives the same endless batches, from memory, as the backend's users feed them.

    Args:
        case: `Case`.
        prefetch: Batches that TensorFlow makes ready while a step runs.
    """
    if keras.backend.backend() != "tensorflow":
        return case.batches
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(case.arrays()).repeat().prefetch(prefetch)
    return lambda: dataset


def fitted(model, batches, at_once=1):
    """`run` of a compiled model: a `fit` of one epoch.

    Args:
        model: Compiled `keras.Model`.
        batches: Function that gives the batches.
        at_once: Steps in one call of the compiled step, of which a whole number is done.
    """

    def run(steps):
        steps = -(-steps // at_once) * at_once
        model.fit(batches(), steps_per_epoch=steps, shuffle=False, verbose=0)
        return steps

    return run


def distiller(
    case,
    *,
    number=1,
    dtype=None,
    folded=False,
    fused=True,
    deterministic=False,
    kind="",
    prefetch=2,
    jit_compile="auto",
    steps_per_execution=1,
):
    """`Distiller.fit` with WSL and a live teacher, as users call it, and variants of it.

    Args:
        case: `Case`.
        number: How many of `LOSSES`.
        dtype: Policy of both networks.
        folded: Whether the teacher is `rewritten.folded`.
        fused: Whether batch normalization has TensorFlow's one kernel; else Keras's operations.
        deterministic: Whether operations are deterministic.
        kind: `"quiet"` where nothing is logged but the loss, `"compiled_teacher"` for the classes above.
        prefetch: See `feeder`.
        jit_compile: See `compile`.
        steps_per_execution: See `compile`.
    """
    if deterministic:
        import tensorflow as tf

        keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    teacher, student = networks(case, dtype)
    teacher = rewritten.folded(teacher) if folded else teacher
    if not fused:
        from keras_wsl.backend.tensorflow import trainer

        trainer.fused = contextlib.nullcontext
    chosen = [losses.WSL(temperature=TEMPERATURE, weight=ALPHA), *map(losses.get, LOSSES[1:number])]
    make = {"": Distiller, "quiet": QuietDistiller, "compiled_teacher": CompiledTeacherDistiller}[kind]
    config = {"jit_compile": jit_compile, "steps_per_execution": steps_per_execution}
    model = compiled(make(teacher, student, chosen), metrics=() if kind == "quiet" else ("accuracy",), **config)
    return fitted(model, feeder(case, prefetch), steps_per_execution)


def handwritten(case, fused=False):
    """The step of `by_hand`.

    Args:
        case: `Case`.
        fused: Whether with the batch normalization of `Distiller`'s steps on TensorFlow.
    """
    teacher, student = networks(case)
    batches = feeder(case)
    if keras.backend.backend() == "tensorflow":
        step = by_hand.tensorflow_step(teacher, student, fused)
    else:
        step = by_hand.JaxTrainer(teacher, student)

    def run(steps):
        for images, labels in itertools.islice(batches(), steps):
            loss = step(images, labels)
        float(loss)  # JAX goes on before it has computed.

    return run


def kd(case):
    """Our `Distiller` with KD."""
    loss = losses.KD(temperature=TEMPERATURE, weight=KD_SHARE)
    return fitted(compiled(Distiller(*networks(case), loss, student_loss_weight=1 - KD_SHARE)), feeder(case))


def keras_kd(case):
    """Keras's `Distiller` with KD: the divergence as an instance, since its default takes logits for probabilities."""
    loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    model = keras.distillation.Distiller(*networks(case), loss, student_loss_weight=1 - KD_SHARE)
    return fitted(compiled(model), feeder(case))


def _hint(layer):
    """The squared distance of one inner map, which must be as wide in both networks."""
    return keras.distillation.FeatureDistillation(loss="mse", teacher_layer_name=layer, student_layer_name=layer)


def feature(case, layer):
    """Our `Distiller` with the loss of `keras_feature`."""
    loss = losses.get(_hint(layer), weight=0.5)
    return fitted(compiled(Distiller(*networks(case), loss, student_loss_weight=0.5)), feeder(case))


def keras_feature(case, layer):
    """Keras's `Distiller` with a loss on one layer."""
    model = keras.distillation.Distiller(*networks(case), _hint(layer), student_loss_weight=0.5)
    return fitted(compiled(model), feeder(case))


def cached(case, batches=8):
    """Our `Distiller` with KD on cached soft labels, which come through the whole input pipeline; no teacher runs.

    Args:
        case: `Case`.
        batches: Integer, of which the data set consists.
    """
    teacher, student = networks(case)
    examples, folder = case.examples(batches), tempfile.TemporaryDirectory()
    store = soft_labels.write_soft_labels(
        teacher, examples, folder.name, include_unaugmented=False, batch_size=case.batch_size, verbose=0
    )
    loss = losses.KD(temperature=TEMPERATURE, weight=KD_SHARE)
    batches = data.train_batches(examples, seed=0, batch_size=case.batch_size, soft_labels=store)
    distiller = Distiller("teacher_logits", student, loss, student_loss_weight=1 - KD_SHARE)
    run = fitted(compiled(distiller), lambda: batches)
    run.folder = folder  # It goes with the last that refers to it.
    return run


def cache_writing(case, batches=48):
    """What writing soft labels takes for a batch: augmentation, the teacher and the files.

    A view has a fixed cost, some 0.2 s: of CIFAR-100's 782 batches a thousandth, of few a part that would be seen.

    Args:
        case: `Case`.
        batches: Integer, that are written in what counts as as many steps.
    """
    teacher, _ = networks(case)
    examples, config = (
        case.examples(batches),
        {"include_unaugmented": False, "batch_size": case.batch_size, "verbose": 0},
    )

    def run(steps):
        rounds = -(-steps // batches)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                soft_labels.write_soft_labels(teacher, examples, folder, **config)
        return rounds * batches

    return run


def teacher_forward(case):
    """The bare teacher: `predict` on batches from memory."""
    teacher, _ = networks(case)
    batches = feeder(case)

    def run(steps):
        teacher.predict(batches(), steps=steps, verbose=0)

    return run


def evaluate(case, whole):
    """`evaluate` on batches from memory.

    Args:
        case: `Case`.
        whole: Whether the distiller's; else the student's own.
    """
    teacher, student = networks(case)
    model = compiled(Distiller(teacher, student, losses.WSL()) if whole else student)
    batches = feeder(case)

    def run(steps):
        steps = max(steps, EVALUATED)
        model.evaluate(batches(), steps=steps, verbose=0)
        return steps

    return run


def student(case):
    """The student's own `fit`, on labels."""
    return fitted(compiled(networks(case)[1]), feeder(case))


def pipeline(case, examples=50_000):
    """The batches of the recipe and nothing that uses them, from as many images as CIFAR-100 has."""
    batches = iter(
        data.train_batches(case.examples(-(-examples // case.batch_size)), seed=0, batch_size=case.batch_size)
    )

    def run(steps):
        for _ in range(REPEAT * steps):
            next(batches)
        return REPEAT * steps

    return run


def product(case):
    """Products of float32 matrices, to see what rate the backend reaches. A step is one of `PRODUCT` rows."""
    accelerated = any(not device.startswith("cpu") for device in keras.distribution.list_devices())
    factor = 4 if accelerated else 1  # A small product would not fill an accelerator.
    left, right = (keras.random.normal((factor * PRODUCT, factor * PRODUCT), seed=seed) for seed in (0, 1))

    def run(steps):
        for _ in range(steps):
            result = keras.ops.matmul(left, right)
        float(result[0, 0])
        return steps * factor**3

    return run
