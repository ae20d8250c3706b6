"""empirical_ntk: the rules of all layers and all methods against the Jacobian and closed forms."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_wsl import models
from keras_wsl.analysis import empirical_ntk, ntk

TENSORFLOW = keras.backend.backend() == "tensorflow"


def images(count=6, size=7, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, channels)).astype("float32")


def scattered(model, seed=0):
    """Give the model weights and statistics other than 0 and 1, which could hide errors."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind == "f":
            variable.assign(value + 0.2 * generator.random(value.shape).astype("float32"))
    return model


def network(*body, inputs=(7, 7, 3), classes=3):
    given = x = keras.Input(inputs)
    for layer in body:
        x = layer(x)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    elif len(x.shape) == 3:
        x = layers.GlobalAveragePooling1D()(x)
    return scattered(keras.Model(given, layers.Dense(classes)(x)))


class Scale(layers.Layer):
    """A layer without a rule."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale**2


class Positions(layers.Layer):
    """Add an embedding of the positions: an inner layer whose output has no axis of examples."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(49, 3)

    def build(self, shape):
        self.embedding.build(None)

    def call(self, inputs):
        return inputs + keras.ops.reshape(self.embedding(keras.ops.arange(49)), (7, 7, 3))


def shared():
    layer = layers.Conv2D(3, 3, padding="same", activation="tanh")
    return [layer, layer, layers.AveragePooling2D(2), layer]


# Created for each test: names of layers are numbered, and must be unique within a network.
RULES = {
    "dense": lambda: [layers.Flatten(), layers.Dense(5, activation="gelu"), layers.Dense(4, use_bias=False)],
    "dense on positions": lambda: [layers.Dense(4, activation="tanh")],
    "einsum": lambda: [layers.EinsumDense("abcd,de->abce", output_shape=(7, 7, 4), bias_axes="e", activation="tanh")],
    "einsum with heads": lambda: [
        layers.Reshape((49, 3)),
        layers.EinsumDense("abd,dnh->abnh", output_shape=(49, 2, 3), bias_axes="nh"),
        layers.EinsumDense("abnh,nhe->abe", output_shape=(49, 4), bias_axes="e"),
    ],
    "convolution": lambda: [layers.Conv2D(4, 3, activation="relu")],
    "strides": lambda: [layers.Conv2D(4, (2, 3), strides=2, padding="same", use_bias=False)],
    "dilation": lambda: [layers.Conv2D(4, 2, dilation_rate=2, padding="same")],
    "convolution of a sequence": lambda: [layers.Reshape((49, 3)), layers.Conv1D(4, 5, strides=3, padding="same")],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same", activation="tanh")],
    "batch normalization": lambda: [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()],
    "layer normalization": lambda: [layers.Conv2D(4, 3), layers.LayerNormalization(), layers.ReLU()],
    "over two axes": lambda: [layers.LayerNormalization(axis=[2, 3])],
    "shared": shared,
    "attention": lambda: [layers.Reshape((49, 3)), lambda x: layers.MultiHeadAttention(2, 3)(x, x)],
}
if not TENSORFLOW:  # It has no gradients of grouped convolutions on a CPU but under XLA.
    RULES["groups"] = lambda: [layers.Conv2D(4, 1), layers.Conv2D(6, 3, groups=2)]


@pytest.mark.parametrize("case", RULES)
def test_structured_rules_match_jacobian(case):
    model, x = network(*RULES[case]()), images()
    expected = empirical_ntk(model, x, method="jacobian")
    assert expected.shape == (18, 18) and np.linalg.eigvalsh(expected)[0] > -1e-4 * np.abs(expected).max()
    result = empirical_ntk(model, x, method="structured")
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
    in_parts = empirical_ntk(model, x, method="structured", memory=500)
    np.testing.assert_allclose(in_parts, expected, atol=1e-5 * np.abs(expected).max())


def test_structured_rules_match_jacobian_channels_first():
    convolutions = [
        layers.Conv2D(4, 3, data_format="channels_first"),
        layers.DepthwiseConv2D(2, data_format="channels_first"),
    ]
    if TENSORFLOW:
        pytest.skip("TensorFlow has no channels_first convolutions on a CPU")
    model = network(*convolutions, layers.BatchNormalization(axis=1), layers.Flatten(), inputs=(3, 7, 7))
    x = np.moveaxis(images(), -1, 1)
    expected = empirical_ntk(model, x, method="jacobian")
    np.testing.assert_allclose(empirical_ntk(model, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("outputs", ntk.OUTPUTS)
@pytest.mark.parametrize("method", ["auto", "jacobian", "ntvp"])
def test_empirical_ntk_outputs_agree_between_methods(outputs, method):
    model, x = network(layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.PReLU()), images(4)
    full = empirical_ntk(model, x, method="jacobian").reshape(4, 3, 4, 3)
    blocks = {"full": full.reshape(12, 12), "trace": np.einsum("icjc->ij", full) / 3, "sum": full.sum((1, 3)) / 3}
    result = empirical_ntk(model, x, outputs, method)
    np.testing.assert_allclose(result, blocks[outputs], atol=1e-5 * np.abs(blocks[outputs]).max())
    assert result.dtype == np.float64 and (result == result.T).all()


@pytest.mark.parametrize("use_bias", [False, True])
def test_empirical_ntk_of_linear_model_is_input_gram(use_bias):
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=use_bias)])
    inner = x.astype("float64") @ x.T + use_bias
    np.testing.assert_allclose(empirical_ntk(model, x), np.kron(inner, np.eye(3)), atol=1e-5)
    np.testing.assert_allclose(empirical_ntk(model, x, "trace"), inner, atol=1e-5)
    np.testing.assert_allclose(empirical_ntk(model, x, "sum"), inner, atol=1e-5)


def test_empirical_ntk_uses_jacobian_for_unsupported_layers():
    class Half(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) / 2

    for body in ([Scale()], [Half(3)], [Positions()], [layers.Conv2D(4, 3), layers.GroupNormalization(2)]):
        model, x = network(*body), images(4)
        expected = empirical_ntk(model, x, method="jacobian")
        np.testing.assert_allclose(empirical_ntk(model, x), expected, atol=1e-5 * np.abs(expected).max())
        with pytest.raises(ValueError, match="method='structured' requires a rule for each weight"):
            empirical_ntk(model, x, method="structured")


def test_empirical_ntk_detects_weights_used_elsewhere():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner = layers.Embedding(6, 4), layers.Dense(4, activation="tanh")

        def call(self, tokens):
            x = keras.ops.mean(self.inner(self.embedding(tokens)), axis=1)
            return x @ keras.ops.transpose(self.embedding.embeddings)

    model, tokens = Tied(), np.random.default_rng(0).integers(0, 6, (4, 5)).astype("int32")
    model(tokens)
    expected = empirical_ntk(model, tokens, method="jacobian")
    np.testing.assert_allclose(empirical_ntk(model, tokens), expected, atol=1e-5 * expected.max())
    with pytest.raises(ValueError, match="requires a rule for each weight"):
        empirical_ntk(model, tokens, method="structured")


def test_empirical_ntk_supports_embeddings_and_dict_inputs():
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    bag = keras.Input((3,), name="bag")
    x = layers.GlobalAveragePooling1D()(layers.Dense(4, activation="tanh")(layers.Embedding(9, 4)(tokens)))
    model = scattered(keras.Model({"tokens": tokens, "bag": bag}, layers.Dense(2)(layers.Concatenate()([x, bag]))))
    generator = np.random.default_rng(0)
    x = {"tokens": generator.integers(0, 9, (6, 5)), "bag": generator.normal(size=(6, 3)).astype("float32")}
    x["tokens"][:, 1] = x["tokens"][:, 0]  # A token twice: its gradients are added.
    expected = empirical_ntk(model, x, method="jacobian")
    np.testing.assert_allclose(empirical_ntk(model, x, method="structured"), expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "mobilenet_v2", "lenet5x8"])
def test_structured_rules_cover_networks_of_the_papers(name):
    model, x = models.build(name, 2, input_shape=(32, 32, 3)), images(2, 32)
    # Only for "sum": "full" uses the same rules and takes twice as long.
    expected = empirical_ntk(model, x, "sum", "jacobian")
    np.testing.assert_allclose(
        empirical_ntk(model, x, "sum", "structured"), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_empirical_ntk_does_not_depend_on_chunks(monkeypatch):
    model, x = network(layers.Conv2D(4, 3, activation="relu")), images(7)
    expected = empirical_ntk(model, x)
    monkeypatch.setattr("keras_wsl.analysis.structured_derivatives._CHUNK", 2 * 4 * (5 * 5 * 4 + 3) + 4)
    np.testing.assert_allclose(empirical_ntk(model, x), expected, rtol=1e-5)


def test_empirical_ntk_ignores_frozen_weights():
    model, x = network(layers.Conv2D(4, 3), layers.BatchNormalization()), images()
    model.layers[1].trainable = False
    without = empirical_ntk(model, x)
    np.testing.assert_allclose(without, empirical_ntk(model, x, method="jacobian"), atol=1e-5 * without.max())
    model.layers[1].trainable = True
    assert (np.diag(empirical_ntk(model, x)) > np.diag(without)).all()


def test_empirical_ntk_does_not_change_the_model():
    model, x = network(layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()), images()
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
    attributes = [set(vars(layer)) for layer in model.layers]
    activation = model.layers[1].activation
    empirical_ntk(model, x)
    assert model.layers[1].activation is activation
    assert [set(vars(layer)) for layer in model.layers] == attributes
    for old, variable in zip(before, model.variables):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable))


def test_empirical_ntk_refuses_invalid_input(monkeypatch):
    model, x = network(layers.Conv2D(4, 3)), images()
    for arguments, message in (
        (dict(outputs="all"), "`outputs` must be one of .* Received: outputs='all'"),
        (dict(method="fast"), "`method` must be one of .* Received: method='fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(model, x, **arguments)
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="infinite or NaN"):
        empirical_ntk(model, np.where(np.arange(6)[:, None, None, None] == 2, np.inf, x))
    with pytest.raises(ValueError, match="of the same length"):
        empirical_ntk(model, x[:0])
    sequences = keras.Sequential([keras.Input((4, 3)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"must have shape \(batch, classes\)"):
        empirical_ntk(sequences, np.ones((3, 4, 3), "float32"))
    half = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="mixed_float16")])
    with pytest.raises(ValueError, match=r"must compute in float32.*Received: \['float16'\]"):
        empirical_ntk(half, np.ones((3, 3), "float32"))
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # A thousand pages of a thousand bytes.
    with pytest.raises(MemoryError, match="Pass at most 89 examples, or outputs='trace'"):
        empirical_ntk(model, images(300))
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        empirical_ntk(model, x)
