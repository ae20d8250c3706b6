"""What tests of several files share: golden files, gradients on any backend, small networks, losses with endpoints."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import resource
import runpy
import subprocess
import sys

import keras
import numpy as np
from absl import flags

from keras_wsl import data, losses, models
from keras_wsl.features import FeatureExtractor

TESTS = pathlib.Path(__file__).parent
GOLDEN = TESTS / "golden"
TRAIN = TESTS.parent / "train"
CHILD_SECONDS = 1200  # The time limit of a child process. It is generous, because other work may slow the machine.


def run_child(command, **kwargs):
    """Run a command in a process of its own, and return it once it has ended, with the text that it printed."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=CHILD_SECONDS, **kwargs)


def run_script(name, *arguments):
    """Run `python train/NAME ARGUMENTS` in this process, which saves the seconds in which a new one imports Keras.

    Returns:
        `subprocess.CompletedProcess`, with the exit status and the text that the script printed.
    """
    command, before = [str(TRAIN / name), *map(str, arguments)], set(flags.FLAGS)
    output, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = command
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = argv
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
    return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())


def golden(name):
    """The content of a golden file; a missing one fails the test that asks."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def gradient(function, value):
    """The gradient of a scalar function of one float32 array, on any backend: a NumPy array."""
    value = np.asarray(value, "float32")
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        value = tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = function(value)
        return tape.gradient(result, value).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(value))
    import torch

    value = torch.tensor(value, requires_grad=True)
    function(value).backward()
    return value.grad.numpy()


def network(name, width=8, classes=5, inputs=6, **dense):
    """A small classifier with batch normalization; its hidden layer is the endpoint `hidden`."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(width, name="hidden"),
            keras.layers.BatchNormalization(momentum=0.5, name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Dense(classes, name="logits", **dense),
        ],
        name=name,
    )


def examples(count=32, classes=5, inputs=6, seed=0):
    """Random inputs and integer labels."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, inputs)).astype("float32")
    return x, generator.integers(0, classes, count).astype("int32")


def bright_splits(train, test=30):
    """Return `data.Splits` with this number of 8 x 8 images, of three classes that differ in brightness."""
    generator = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count) % 3
        images = generator.integers(0, 80, (count, 8, 8, 3)) + 80 * labels[:, None, None, None]
        return data.ImageArrays(images.astype("uint8"), labels, ("dark", "grey", "light"), (0.5,) * 3, (0.25,) * 3)

    return data.Splits(part(train), part(test))


@contextlib.contextmanager
def largest_file(size):
    """Limit the size of files to a number of bytes, as a full disk does, without being root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hard_loss():
    """The cross-entropy with integer labels, of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arrays(model):
    """Copies of all variables of a model."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]


def image_network(name, filters=(4, 4, 6, 8), classes=5, input_shape=(8, 8, 3), dtype=None):
    """A small classifier of images with the endpoints of `keras_wsl.models`."""
    x = inputs = keras.Input(input_shape)
    for stage, channels in enumerate(filters):
        end = f"block{stage}" if stage else "stem"
        strides = 2 if stage > 1 else 1
        x = keras.layers.Conv2D(channels, 3, strides, padding="same", dtype=dtype, name=f"{end}_conv")(x)
        x = keras.layers.BatchNormalization(dtype=dtype, name=f"{end}_preact")(x)
        x = keras.layers.ReLU(dtype=dtype, name=end)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype, name="pooled")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, dtype="float32", name="logits")(x), name=name)


@models.register("tiny")
def tiny(*, classes, input_shape, dtype=None, name):
    """`image_network` for tests of scripts, most of whose time is that of tracing a network."""
    return image_network(name, classes=classes, input_shape=input_shape, dtype=dtype)


def text_network(name, depth, width=4, classes=5):
    """A small classifier of sequences, `(6, 3)`, whose layers give states as a transformer's do."""
    x = inputs = keras.Input((6, 3))
    for i in range(depth):
        x = keras.layers.Dense(width, activation="tanh", name=f"transformer_layer_{i}")(x)
    x = keras.layers.GlobalAveragePooling1D(name="pooled")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name=name)


def networks(name):
    """A new student and a new teacher that have the endpoints which the loss of that name asks for."""
    if name == "pkd":
        return text_network("student", 2), text_network("teacher", 8)
    # FSP alone wants equal channels.
    return image_network("student"), image_network("teacher", (4, 4, 6, 8) if name == "fsp" else (6, 6, 8, 12))


@functools.cache
def _shared_networks(kind):
    return networks(kind)


@functools.cache
def _known_networks(name):
    """The same two at every call, and the shapes of their endpoints: for tests that train neither."""
    loss, models = make_loss(name), _shared_networks(name if name in ("pkd", "fsp") else "others")
    names = loss.student_layers, loss.teacher_layers
    return models, [FeatureExtractor(model, wanted).shapes() for model, wanted in zip(models, names)]


def make_loss(name, /, **settings):
    """The loss of that name; CRD's data set has 40 examples of 5 classes."""
    if name == "crd":
        settings = {"labels": np.arange(40) % 5, "negatives": 8, "dimensions": 6, **settings}
    return losses.get(name, **settings)


def built_loss(name, /, *, alike=False, **settings):
    """`make_loss`, built for and shown the networks of `networks(name)`; `alike` for two teachers."""
    return built(make_loss(name, **settings), name, alike=alike)


def built(loss, name, *, alike=False):
    """The loss of that name, built for and shown the same networks."""
    (student, teacher), (student_shapes, teacher_shapes) = _known_networks(name)
    if alike:
        student, student_shapes = teacher, _alike(loss, teacher_shapes)
    if not loss.built:  # From a file it is. This is what `Distiller` does.
        loss.build((None,), student_shapes, teacher_shapes)
        loss.built = True
    loss.bind_models(student, teacher)
    return loss


@dataclasses.dataclass
class Batch:
    """What a loss is given: NumPy arrays, and dicts of them."""

    labels: np.ndarray
    student: dict
    teacher: dict
    index: np.ndarray

    def map(self, function):
        """A batch of what `function` makes of each endpoint."""
        ends = ({name: function(values) for name, values in end.items()} for end in (self.student, self.teacher))
        return Batch(self.labels, *ends, self.index)

    def take(self, rows):
        """A batch of these examples."""
        ends = self.map(lambda values: values[rows])
        return Batch(self.labels[rows], ends.student, ends.teacher, self.index[rows])


def random_batch(name, count=4, seed=0):
    """Random endpoints of the networks of `networks(name)`, examples of the data set of `make_loss`."""
    generator = np.random.default_rng(seed)
    ends = (
        {end: generator.normal(size=(count, *shape[1:])).astype("float32") for end, shape in shapes.items()}
        for shapes in _known_networks(name)[1]
    )
    index = generator.permutation(40)[:count].astype("int32")
    return Batch(index % 5, *ends, index)


def agreeing_batch(name, count=4, seed=0):
    """`random_batch` of a student that gives what the teacher gives, for `built_loss(name, alike=True)`."""
    batch = random_batch(name, count, seed)
    return Batch(batch.labels, _alike(make_loss(name), batch.teacher), batch.teacher, batch.index)


def _alike(loss, teacher):
    """What a dict holds for the teacher's endpoints, under the student's names."""
    pairs = zip(loss.student_layers, loss.teacher_layers)
    return {"logits": teacher["logits"], **{own: teacher[other] for own, other in pairs}}


def compute_per_example_losses(loss, batch, **settings):
    """What a built loss gives for a batch: floats, shape `(batch,)`. Its state, such as memories and seeds, stays."""
    with keras.StatelessScope():
        return loss(batch.labels, batch.student, batch.teacher, index=batch.index, **settings)


def keras_cv_classifier(blocks, nested=False):
    """A `ResNetBackbone` from its constructor, as the layer `backbone` or laid open."""
    import keras_cv

    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128],
        stackwise_blocks=blocks,
        stackwise_strides=[1, 2],
        include_rescaling=False,
        input_shape=(32, 32, 3),
        block_type="basic_block",
        name="backbone",
    )
    inputs = keras.Input((32, 32, 3)) if nested else backbone.input
    features = backbone(inputs) if nested else backbone.output
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(features)
    return keras.Model(inputs, keras.layers.Dense(3)(pooled))


def bert_preset(folder, layers=4, words=45, width=8):
    """A folder with a small BERT as keras-nlp saves it, and its tokens: of words `w0` and so on."""
    import keras_nlp

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(words))]
    network = keras_nlp.models.BertBackbone(
        vocabulary_size=len(tokens),
        num_layers=layers,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=16,
    )
    for variable in network.trainable_variables:  # Else all tokens are almost alike, and all biases 0.
        variable.assign_add(0.3 * keras.random.normal(variable.shape))
    network.save_to_preset(folder)
    keras_nlp.models.BertTokenizer(tokens, lowercase=True).save_to_preset(folder)
    return str(folder)


def save_and_load(distiller, path, make):
    """Save a Distiller in a file of any kind, and return the one that reads it, with the same teacher.

    Args:
        distiller: The Distiller.
        path: Path that ends in `.keras` or `.weights.h5`.
        make: Function that returns the Distiller that loads weights.
    """
    if path.suffix == ".keras":
        distiller.save(path)
        loaded = keras.saving.load_model(path)
        assert loaded.teacher is None
    else:
        distiller.save_weights(path)
        loaded = make()
        loaded.optimizer.build(loaded.trainable_variables)  # Otherwise Keras skips the optimizer, for any model.
        loaded.load_weights(path)
    loaded.teacher = distiller.teacher
    return loaded
