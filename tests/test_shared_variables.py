"""A student that shares variables with a teacher: refused by name, unless training does not change them."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_wsl import Distiller, losses
from tests.common import arrays, examples, hard_loss, network
from tests.test_distiller import Hint, changed

X, Y = examples(8)


def student_of(*shared, head=True):
    """A network of shared layers and a head of its own."""
    x = inputs = keras.Input((6,))
    for layer in shared:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(5, name="own_logits")(x) if head else x, name="student")


def teacher_with(*inner):
    return keras.Sequential([keras.Input((6,)), *inner, layers.Dense(5, name="logits")], name="teacher")


def fit(distiller):
    distiller.compile(keras.optimizers.SGD(0.5), hard_loss(), run_eagerly=True)
    distiller.fit(X, Y, batch_size=4, verbose=0)


class Tied(layers.Layer):
    """Another layer object with the kernel of a dense layer."""

    def __init__(self, dense):
        super().__init__()
        self.kernel = dense.kernel

    def call(self, inputs):
        return inputs @ self.kernel


class TeachersHead(losses.DistillationLoss):
    """Takes the teacher's classifier for its adapter."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def per_example(self, labels, student, teacher):
        return keras.ops.mean(keras.ops.square(self.head(student["logits"]) - teacher["logits"]), axis=-1)


class SmallNorm(layers.Layer):
    """Assigns to its state in training, frozen or not."""

    def build(self, input_shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def call(self, inputs, training=False):
        if training:
            self.seen.assign(self.seen + 1.0)
        return inputs


def test_shared_layer_is_refused_by_name():
    """The model of the report: the teacher's first layer and a new head."""
    teacher = network("teacher")
    student = keras.Model(teacher.inputs, layers.Dense(5)(teacher.layers[0].output))
    with pytest.raises(
        ValueError, match=r"The teacher 'teacher' must share no variables.*Received: 2 variables.*hidden/kernel, .*bias"
    ):
        Distiller(teacher, student, losses.WSL())


def _dense():
    return layers.Dense(6, name="hidden")


def _frozen(layer):
    layer.trainable = False
    return layer


def _lora():
    layer = _dense()
    layer.build((None, 6))
    layer.enable_lora(2)
    return layer


REFUSED = {
    "dense": (_dense, "hidden/kernel"),
    "batch normalization": (lambda: layers.BatchNormalization(name="norm"), "norm/gamma"),
    "moving statistics alone": (
        lambda: layers.BatchNormalization(center=False, scale=False, name="norm"),
        "norm/moving_mean",
    ),
    "seed": (lambda: _frozen(layers.Dropout(0.5, name="drop")), "seed_generator_state"),
    "state that is assigned although it is frozen": (lambda: _frozen(SmallNorm(name="counter")), "counter/seen"),
    "low-rank adapters": (_lora, "lora_kernel_a"),
    "nested model": (lambda: keras.Sequential([keras.Input((6,)), _dense()], name="inner"), "hidden/kernel"),
}
ACCEPTED = {
    "frozen dense": lambda: _frozen(_dense()),
    "frozen batch normalization": lambda: _frozen(layers.BatchNormalization()),
    "frozen nested model": lambda: _frozen(keras.Sequential([keras.Input((6,)), _dense()], name="inner")),
    "constant statistics": lambda: layers.Normalization(),
    "no variables": lambda: layers.ReLU(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_shared_variables_that_training_changes_are_refused(kind):
    make, name = REFUSED[kind]
    shared = make()
    teacher = teacher_with(shared)
    with pytest.raises(ValueError, match=f"that training changes.*has too: .*{name}.*Freeze their layers"):
        Distiller(teacher, student_of(shared), losses.KD())


@pytest.mark.parametrize("kind", ACCEPTED)
def test_shared_variables_that_training_keeps_are_accepted(kind):
    shared = ACCEPTED[kind]()
    teacher = teacher_with(shared)
    student = student_of(shared)
    distiller, before, own = Distiller(teacher, student, losses.KD()), arrays(teacher), arrays(student)
    fit(distiller)
    assert not changed(before, arrays(teacher)) and changed(own, arrays(student))


def test_low_rank_adapters_may_be_trained_on_a_frozen_kernel():
    """The student's adapters are its own; the kernel below them is the teacher's."""
    dense = _frozen(_dense())
    teacher = teacher_with(dense)
    low_rank = [layers.Dense(2, use_bias=False), layers.Dense(6, use_bias=False)]
    inputs = keras.Input((6,))
    x = layers.Add()([dense(inputs), low_rank[1](low_rank[0](inputs))])
    student = keras.Model(inputs, layers.Dense(5)(x))
    before = arrays(teacher)
    fit(Distiller(teacher, student, losses.KD()))
    assert not changed(before, arrays(teacher))


def test_one_variable_in_two_layers_is_shared():
    teacher = teacher_with(_dense())
    tied = Tied(teacher.get_layer("hidden"))
    with pytest.raises(ValueError, match=r"Received: 1 variables.*hidden/kernel"):
        Distiller(teacher, student_of(tied), losses.KD())


def test_every_teacher_is_checked_whether_a_loss_uses_it_or_not():
    shared = _dense()
    teachers = {"large": network("large"), "small": teacher_with(shared)}
    with pytest.raises(ValueError, match="The teacher 'teacher' must share no variables.*Received: 2 variables"):
        Distiller(teachers, student_of(shared), losses.KD(teacher="large"))
    with pytest.raises(ValueError, match="The teacher 'teacher' must share no variables.*Received: 2 variables"):
        Distiller(teachers["small"], student_of(shared))


def test_teacher_that_is_set_later_is_checked():
    shared = _dense()
    distiller = Distiller(network("teacher"), student_of(shared), losses.KD())
    with pytest.raises(ValueError, match="Received: 2 variables"):
        distiller.teacher = teacher_with(shared)


def test_layer_that_is_thawed_before_fit_is_refused():
    shared = _frozen(_dense())
    teacher = teacher_with(shared)
    distiller = Distiller(teacher, student_of(shared), losses.KD())
    fit(distiller)
    shared.trainable, before = True, arrays(teacher)
    with pytest.raises(ValueError, match="Received: 2 variables"):
        distiller.fit(X, Y, verbose=0)
    assert not changed(before, arrays(teacher))


def test_adapter_of_a_loss_that_is_a_layer_of_the_teacher():
    """Refused, or a constant if it is frozen."""
    teacher = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(5, name="logits")], name="teacher")
    with pytest.raises(ValueError, match="Received: 2 variables that the student or a loss has too.*logits/kernel"):
        Distiller(teacher, network("student"), TeachersHead(teacher.get_layer("logits")))
    teacher.get_layer("logits").trainable = False
    before = arrays(teacher)
    fit(Distiller(teacher, network("student"), TeachersHead(teacher.get_layer("logits"))))
    assert not changed(before, arrays(teacher))


def test_student_with_nothing_to_train_is_refused():
    student = _frozen(network("student"))
    distiller = Distiller(network("teacher"), student, losses.KD())
    distiller.compile("sgd", hard_loss())
    for train in (distiller.fit, distiller.train_on_batch):
        with pytest.raises(ValueError, match="must have trainable variables. Received: none"):
            train(X, Y)
    assert np.isfinite(distiller.evaluate(X, Y, verbose=0))


def test_adapters_alone_may_be_trained():
    """The student is frozen, and a loss's adapter is not."""
    teacher, student = network("teacher", width=11), _frozen(network("student"))
    loss = Hint()
    distiller = Distiller(teacher, student, loss)
    before, adapter = arrays(student), arrays(loss)
    fit(distiller)
    assert not changed(before, arrays(student)) and changed(adapter, arrays(loss))
