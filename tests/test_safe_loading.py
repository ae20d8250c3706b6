"""Untrusted files: the package and its scripts never run code from them.

Every file here would make a marker when its content is run, and each test looks for the marker. Of PyTorch's files
`tests/models/test_torchvision.py` does.
"""

import hashlib
import io
import json
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_wsl import Distiller, callbacks, data, losses, models, soft_labels
from keras_wsl.callbacks import backup_file
from keras_wsl.models import convert_torchvision
from keras_wsl.models.weights import read_network
from keras_wsl.training import runner
from keras_wsl.training.config import Config, to_lines
from reproduction import bias_variance, launcher, saved_runs
from tests.common import bright_splits, image_network

REFUSED = "student.keras' cannot be read as a network: {}.*Code in a file is never run"


class Harmful:
    """An object that creates the marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


class Unknown(keras.layers.Layer):
    """A layer that is not registered."""

    def call(self, inputs):
        return inputs


@pytest.fixture
def marker(tmp_path):
    """Yield the directory that harmful content creates. It must not exist at the end."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


def network(layer):
    layers = [keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(3, name="logits")]
    return keras.Sequential(layers, name="student")


def with_a_lambda(marker):
    """Return a network with a Lambda that creates the marker, also when it is built here."""
    path = str(marker)
    made = network(keras.layers.Lambda(lambda x: (__import__("os").makedirs(path, exist_ok=True), x)[1]))
    marker.rmdir()
    return made


def lambda_file(path, marker):
    with_a_lambda(marker).save(path)


def unknown_file(path, marker):
    network(Unknown()).save(path)


def rewrite_config(path, change):
    """Replace the text of a file's configuration by `change(text)`."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "config.json": change(parts["config.json"].decode())}.items():
            archive.writestr(name, content)


def forged_file(change, path, marker):
    """Write a network whose file names another class or function for one of its layers."""
    network(Unknown()).save(path)

    def rename(text):
        config = json.loads(text)
        (layer,) = (layer for layer in config["config"]["layers"] if layer["class_name"] == "Unknown")
        layer.update(registered_name=None, **change(str(marker)))
        return json.dumps(config)

    rewrite_config(path, rename)


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": "function"}


def a_process(marker):
    return {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", marker]}}


def a_function(marker):
    activation = {"name": "mkdir", "activation": function("os", "mkdir")}
    return {"module": "keras.layers", "class_name": "Activation", "config": activation}


FILES = {
    "lambda": (lambda_file, "Requested the deserialization of a `Lambda` layer"),
    "unknown": (unknown_file, "Could not locate class 'Unknown'"),
    "process": (lambda *args: forged_file(a_process, *args), "Could not locate class 'Popen'"),
    "function": (lambda *args: forged_file(a_function, *args), "Could not locate function 'mkdir'"),
}


@pytest.fixture(params=FILES)
def refused(request, tmp_path, marker):
    """Return a harmful `.keras` file and its error."""
    write, message = FILES[request.param]
    path = tmp_path / "run" / "student.keras"
    path.parent.mkdir()
    write(path, marker)
    return path, REFUSED.format(message)


def teaching(path, tmp_path):
    """Train with the teacher in the file."""
    wanted = Config(
        method="kd", student="resnet8", teacher="resnet8", teacher_weights=str(path), epochs=1, batch_size=8
    )
    runner.run(wanted, bright_splits(12), tmp_path / "out", verbose=0)


def as_a_run(path):
    """Evaluate the student of a run in the file's directory."""
    splits = bright_splits(12)
    wanted = Config(method="kd", student="resnet8", teacher="resnet8", teacher_weights=str(path))
    (path.parent / "run.flags").write_text("\n".join(to_lines(wanted)))
    (path.parent / "result.json").write_text("{}")
    launcher.load_logits(path.parent, splits)


READERS = {
    "read_network": lambda path, folder: read_network(path),
    "build": lambda path, folder: models.build("resnet8", classes=3, weights=path, input_shape=(8, 8, 3)),
    "load_weights": lambda path, folder: models.load_weights(network(keras.layers.ReLU()), path),
    "teacher_weights": teaching,
    "evaluate": lambda path, folder: saved_runs.load_network(path),
    "jobs": lambda path, folder: as_a_run(path),
    "bias_variance": lambda path, folder: bias_variance.compute_log_probs(path, bright_splits(3).test, 8),
}


def test_read_network_rejects_unknown_layers(refused, tmp_path):
    """Every reader of `.keras` files raises an error of one line. Scripts exit with status 2 for a ValueError."""
    path, message = refused
    for name, read in READERS.items():
        with pytest.raises(ValueError, match=message) as caught:
            read(path, tmp_path)
        assert "\n" not in str(caught.value) and "safe_mode" not in str(caught.value), name
    with pytest.raises((ValueError, TypeError), match=message.partition(": ")[2].partition(".*")[0]):
        keras.saving.load_model(path)
    assert not (tmp_path / "out").exists()


def test_load_model_rejects_unknown_layers_in_distiller(tmp_path, marker):
    """`load_model` reads a distiller's student, losses and weightings in safe mode."""
    path = tmp_path / "distiller.keras"

    def save(student, **loss):
        distiller = Distiller(image_network("teacher", classes=3), student, losses.KD(**loss))
        distiller.save(path)

    def forge(changes):
        def replace(text):
            for old, new in changes.items():
                assert old in text
                text = text.replace(old, new)
            return text

        rewrite_config(path, replace)

    save(with_a_lambda(marker))
    marker.rmdir()  # Which a Distiller, too, has made by asking for the shapes of endpoints.
    with pytest.raises((ValueError, TypeError), match="`Lambda` layer whose `function` is a Python lambda"):
        keras.saving.load_model(path)
    save(network(keras.layers.ReLU()), weighting="hard_to_mimic")
    assert keras.saving.load_model(path).teacher is None
    forge({'"hard_to_mimic"': json.dumps(function("os", "mkdir"))})
    with pytest.raises((ValueError, TypeError), match="Could not locate function 'mkdir'"):
        keras.saving.load_model(path)
    save(network(keras.layers.ReLU()))
    forge({'"KD"': '"Popen"', '"keras_wsl>KD"': "null", '"keras_wsl.losses.logit.kd"': '"subprocess"'})
    with pytest.raises((ValueError, TypeError), match="Could not locate class 'Popen'"):
        keras.saving.load_model(path)


def test_load_weights_does_not_follow_external_links(tmp_path):
    """An HDF5 file with external links does not match the network. The other file is not read."""
    model = network(keras.layers.ReLU())
    models.save_weights(model, tmp_path / "whole.weights.h5", dtype="float32")
    models.save_weights(model, tmp_path / "linked.weights.h5", dtype="float32")
    with h5py.File(tmp_path / "linked.weights.h5", "a") as file:
        del file["layers"]["dense"]["vars"]["0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(tmp_path / "whole.weights.h5"), "/layers/dense/vars/0")
    with pytest.raises(ValueError, match="does not match student: expected 2 arrays, received 1"):
        models.load_weights(model, tmp_path / "linked.weights.h5")


def harmful_array(marker):
    return np.array([Harmful(marker)], object)


def images_file(path, marker):
    data.save_npz(bright_splits(3), path)
    with np.load(path) as arrays:
        named = {**arrays, "train.images": harmful_array(marker)}
    np.savez(path, **named)


def test_arrays_are_not_unpickled(tmp_path, marker):
    """NumPy files of images, soft labels and PyTorch arrays must contain numbers."""
    path = tmp_path / "images.npz"
    images_file(path, marker)
    for read in (data.load_npz, data.cifar100):
        with pytest.raises(
            ValueError, match=r"images.npz is damaged or has other contents than arrays.*allow_pickle=False"
        ):
            read(path)
    np.savez(tmp_path / "torch.npz", **{"fc.weight": harmful_array(marker)})
    with pytest.raises(ValueError, match="is not a complete '.npz' file of arrays"):
        convert_torchvision.read(tmp_path / "torch.npz")


def test_soft_labels_are_not_unpickled(tmp_path, marker):
    """Neither the table nor the logits are unpickled, even with the digest of the harmful file."""
    teacher = image_network("teacher", classes=3)
    settings = {"seed": 0, "num_views": 1, "batch_size": 6, "verbose": 0}
    store = soft_labels.write_soft_labels(teacher, bright_splits(6).train, tmp_path / "soft", **settings)
    for name in ("view-00000.npy", "unaugmented.npy", "examples.npy"):
        path = store.directory / name
        whole = path.read_bytes()
        np.save(path, harmful_array(marker))
        path.with_name(f"{name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(ValueError, match=f"{name} (is not a complete file|cannot be read)"):
            soft_labels.SoftLabels(store.directory)
        path.write_bytes(whole)


def test_backups_are_not_unpickled(tmp_path, marker):
    """A backup with a valid digest is damaged if it contains more than arrays."""
    run = np.frombuffer(b'{"position": [0, 0]}', "uint8")
    for arrays in ({"run": harmful_array(marker)}, {"run": run, "0": harmful_array(marker)}):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
        path = tmp_path / "backups" / "epoch-00000.backup"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(backup_file.MAGIC + b"\n" + digest + b"\n" + buffer.getvalue())
        with pytest.warns(UserWarning, match="is damaged .its content is not a backup"):
            found = callbacks.ExactBackupAndRestore(path.parent, 4)
        assert found.initial_position == [0, 0] and found.history == []


def test_harmful_objects_run_code_when_unpickled(tmp_path, marker):
    """Check that the files above are harmful. Otherwise these tests could not fail."""
    np.save(tmp_path / "harmful.npy", harmful_array(marker))
    np.load(tmp_path / "harmful.npy", allow_pickle=True)
    assert marker.is_dir()
    marker.rmdir()
    lambda_file(tmp_path / "harmful.keras", marker)
    keras.saving.load_model(tmp_path / "harmful.keras", safe_mode=False)
    assert marker.is_dir()
    marker.rmdir()


INNER = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)], name="inner")
ABSURD = {
    "units": ([keras.Input((5,)), keras.layers.Dense(4)], '"units": 4', '"units": 1000000000'),
    "units of a nested network": ([keras.Input((5,)), INNER], '"units": 4', '"units": 1000000000'),
    "more than 64 bits": ([keras.Input((5,)), keras.layers.Dense(4)], '"units": 4', '"units": 1' + 30 * "0"),
    "vocabulary": (
        [keras.Input((5,), dtype="int32"), keras.layers.Embedding(7, 4)],
        '"input_dim": 7',
        '"input_dim": 10000000000',
    ),
    "kernel": (
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same")],
        '"kernel_size": [3, 3]',
        '"kernel_size": [100000, 100000]',
    ),
    "recurrent units": ([keras.Input((5, 2)), keras.layers.LSTM(4)], '"units": 4', '"units": 1000000'),
    "layers that fit one by one": (
        [keras.Input((8, 8, 3)), *(keras.layers.Conv2D(3, 3, padding="same", name=f"conv_{i}") for i in range(4))],
        '"kernel_size": [3, 3]',
        '"kernel_size": [45, 45]',
    ),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_read_network_limits_parameters_by_file_size(kind, tmp_path):
    layers, old, new = ABSURD[kind]
    path = tmp_path / "absurd.keras"
    model = keras.Sequential(layers)
    model.save(path)
    assert [array.shape for array in read_network(path).get_weights()] == [w.shape for w in model.get_weights()]

    def replace(text):
        assert old in text
        return text.replace(old, new)

    rewrite_config(path, replace)
    with pytest.raises(ValueError, match=r"must have at most \d+ parameters, .*with a variable '\w+' of") as error:
        read_network(path)
    assert "\n" not in str(error.value)
    assert keras.layers.Dense(10**5).compute_output_shape((1, 1)) == (1, 10**5)
    keras.layers.Dense(10**5).build((1, 1))  # Outside of the reading nothing is limited.


def test_read_network_limit_ignores_sizes_in_archive(tmp_path):
    """A member that compresses to a thousandth of its size does not raise the limit."""
    path = tmp_path / "bomb.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]).save(path)
    rewrite_config(path, lambda text: text.replace('"units": 3', '"units": 1000000'))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(2**23))
    with pytest.raises(ValueError, match="must have at most"):
        read_network(path)


def test_read_network_accepts_callers_limit(tmp_path):
    path = tmp_path / "network.keras"
    network(keras.layers.ReLU()).save(path)
    for limit, fits in ((578, False), (579, True)):
        if fits:
            assert read_network(path, max_parameters=limit).count_params() == 579
        else:
            with pytest.raises(ValueError, match="at most 578 parameters, .*with a variable 'bias' of shape"):
                read_network(path, max_parameters=limit)
