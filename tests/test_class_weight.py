"""`class_weight` does what the equivalent `sample_weight` does, with every kind of data and of labels."""

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses
from tests.common import arrays, examples, hard_loss, network
from tests.test_distiller import changed

X, Y = examples(12)
SMOOTHED = (0.9 * np.eye(5)[Y] + 0.02).astype("float32")
SAMPLE_WEIGHT = np.linspace(0.5, 2.0, 12).astype("float32")
CLASS_WEIGHT = {0: 0.0, np.int64(2): 3.0, 4: np.float32(0.5)}
OF_EXAMPLES = np.array([0, 1, 3, 1, 0.5], "float32")[Y]
LABELS = {
    "integers": Y,
    "column": Y[:, None],
    "floats": Y.astype("float32"),
    "one-hot": np.eye(5, dtype="float32")[Y],
    "smoothed": SMOOTHED,
    "dict": {"labels": Y, "index": np.arange(12)},
    "dict of distributions": {"labels": SMOOTHED, "index": np.arange(12)},
}


class Batches(keras.utils.PyDataset):
    """Batches of four, in order."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return keras.tree.map_structure(lambda array: array[4 * i : 4 * i + 4], self.parts)


def as_tf_data(*parts):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(parts).batch(4)


def as_loader(*parts):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.as_tensor, parts)), batch_size=4)


DATA = {
    "PyDataset": Batches,
    "generator": lambda *parts: (batch for batch in [*Batches(*parts)] * 2),
    "tf.data": as_tf_data,
    "loader": as_loader,
}


def train(y, data=None, class_weight=None, sample_weight=None):
    """The student's weights and the history after an epoch of three steps."""
    keras.utils.set_random_seed(0)
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    labels = y["labels"] if isinstance(y, dict) else y
    loss = hard_loss() if labels.shape[-1] != 5 else keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.5), loss, weighted_metrics=["accuracy"], run_eagerly=True)
    if data is None:
        given = {"x": X, "y": y, "sample_weight": sample_weight, "batch_size": 4}
    else:
        given = {"x": DATA[data](X, y, *([] if sample_weight is None else [sample_weight])), "steps_per_epoch": 3}
    given.update(class_weight=class_weight, validation_data=(X, y), shuffle=False, verbose=0)
    history = distiller.fit(**given).history
    return arrays(distiller.student), history


def check_same(one, other):
    for array, expected in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    for name, values in other[1].items():
        np.testing.assert_allclose(one[1][name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("labels", LABELS)
def test_class_weight_equals_sample_weight_for_every_kind_of_labels(labels):
    expected = train(LABELS[labels], sample_weight=OF_EXAMPLES)
    check_same(train(LABELS[labels], class_weight=CLASS_WEIGHT), expected)
    assert changed(expected[0], train(LABELS[labels])[0])
    assert expected[1]["accuracy"] != expected[1]["val_accuracy"]  # Validation has no class weights, as in Keras.


@pytest.mark.parametrize("data", [None, *DATA])
def test_class_weight_multiplies_sample_weight_of_every_kind_of_data(data):
    y = LABELS["integers" if data == "loader" else "dict"]
    found = train(y, data, class_weight=CLASS_WEIGHT, sample_weight=SAMPLE_WEIGHT)
    check_same(found, train(y, sample_weight=OF_EXAMPLES * SAMPLE_WEIGHT))


def test_class_weight_of_one_fit_does_not_reach_the_next():
    """A compiled step holds the weights that it was traced with, and is traced again for others."""

    def fits(*weightings, eagerly=False):
        keras.utils.set_random_seed(0)
        distiller = Distiller(None, network("student"))
        distiller.compile(keras.optimizers.SGD(0.5), hard_loss(), run_eagerly=eagerly)
        for weighting in weightings:
            distiller.fit(X, Y, batch_size=12, verbose=0, **weighting)
        evaluated = distiller.evaluate(X, Y, batch_size=12, verbose=0)
        return [*arrays(distiller.student), evaluated]

    found = fits({"class_weight": CLASS_WEIGHT}, {}, {"class_weight": {0: 2.0, 1: 0.0}})
    of_examples = np.array([2.0, 0, 1, 1, 1], "float32")[Y]
    expected = fits({"sample_weight": OF_EXAMPLES}, {}, {"sample_weight": of_examples}, eagerly=True)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


def test_train_on_batch_takes_class_weight():
    def step(**weights):
        keras.utils.set_random_seed(0)
        distiller = Distiller(None, network("student"))
        distiller.compile(keras.optimizers.SGD(0.5), hard_loss(), run_eagerly=True)
        return distiller.train_on_batch(X, {"labels": Y}, return_dict=True, **weights)

    logs, expected = step(class_weight=CLASS_WEIGHT), step(sample_weight=OF_EXAMPLES)
    assert logs == pytest.approx(expected) and logs != pytest.approx(step())


def test_class_weight_by_position_is_checked():
    """`fit` has it as its tenth argument."""
    distiller = Distiller(None, network("student"))
    distiller.compile("sgd", hard_loss())
    with pytest.raises(
        ValueError, match=r"keys of `class_weight` must be class indices, integers in \[0, 5\).*Received: '0', a str"
    ):
        distiller.fit(X, Y, 4, 1, 0, None, 0.0, None, True, {"0": 100.0})


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({5: 1.0}, r"\[0, 5\).*Received: 5, a int"),
        ({-1: 1.0}, r"\[0, 5\).*Received: -1"),
        ({True: 1.0}, r"\[0, 5\).*Received: True, a bool"),
        ({1.0: 1.0}, r"\[0, 5\).*Received: 1.0, a float"),
        ({0: -1.0}, "`class_weight` must be finite, non-negative numbers"),
        ({0: float("inf")}, "`class_weight` must be finite, non-negative numbers"),
        ({0: "1"}, "`class_weight` must be a dict of classes to numbers"),
        (np.ones(5), "`class_weight` must be a dict of classes to numbers. Received: ndarray"),
    ],
)
def test_class_weight_that_names_no_class_is_refused(class_weight, message):
    distiller = Distiller(None, network("student"))
    distiller.compile("sgd", hard_loss(), run_eagerly=True)
    before = arrays(distiller.student)
    for fit in (distiller.fit, distiller.train_on_batch):
        with pytest.raises(ValueError, match=message):
            fit(X, {"labels": Y}, class_weight=class_weight)
    assert not changed(before, arrays(distiller.student))
