"""Networks that see a batch each in its own way: `student_inputs` and `teacher_inputs`."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, callbacks, export, losses
from tests.common import arrays, hard_loss
from tests.test_distiller import (
    BACKEND,
    changed,
    counted,
    cross_entropies,
    divergences,
    log_softmax,
    logits,
)

pytestmark = pytest.mark.eager


def network(name, size, width=8):
    """A classifier of images, with batch normalization."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Flatten(),
            layers.Dense(width, name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dense(3, name="logits"),
        ],
        name=name,
    )


@keras.saving.register_keras_serializable("tests")
def every_second(images):
    """Half the resolution."""
    return images[:, ::2, ::2]


@keras.saving.register_keras_serializable("tests")
def brighter(inputs):
    """Of a dict, the large images, scaled."""
    return inputs["large"] * 2.0


def images(count=18, size=8):
    generator = np.random.default_rng(2)
    return generator.normal(size=(count, size, size, 1)).astype("float32"), generator.integers(0, 3, count)


def pair(count=18):
    large, y = images(count)
    return {"large": large, "small": large[:, ::2, ::2].copy()}, y


def mean_of_blocks(x):
    """What bilinear resizing to the half is: the mean of each block of 2 x 2."""
    return x.reshape(len(x), 4, 2, 4, 2, 1).mean(axis=(2, 4))


# Name: settings, the inputs of `fit`, and what student and teacher are to be given of them, by NumPy.
WAYS = {
    "keys": (
        lambda: {"student_inputs": "small", "teacher_inputs": "large"},
        pair,
        lambda x: (x["small"], x["large"]),
    ),
    "layer": (
        lambda: {"student_inputs": keras.layers.Resizing(4, 4, data_format="channels_last")},
        images,
        lambda x: (mean_of_blocks(x), x),
    ),
    "function": (lambda: {"student_inputs": every_second}, images, lambda x: (every_second(x), x)),
    "key_and_function": (
        lambda: {"student_inputs": "small", "teacher_inputs": brighter},
        pair,
        lambda x: (x["small"], 2 * x["large"]),
    ),
    "layers_of_both": (
        lambda: {
            "student_inputs": keras.Sequential(
                [keras.Input((8, 8, 1)), keras.layers.AveragePooling2D(2, data_format="channels_last")]
            ),
            "teacher_inputs": keras.layers.Rescaling(0.5, offset=1.0),
        },
        images,
        lambda x: (mean_of_blocks(x), 0.5 * x + 1),
    ),
}


def made(way, learning_rate=0.0, **settings):
    """A Distiller whose student sees 4 x 4 and whose teacher 8 x 8, the same at every call."""
    keras.utils.set_random_seed(1)
    teacher, student = network("teacher", 8, 13), network("student", 4)
    distiller = Distiller(teacher, student, losses.WSL(), **WAYS[way][0]())
    distiller.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), hard_loss(), metrics=["accuracy"], **settings)
    return distiller


@pytest.mark.parametrize("way", WAYS)
def test_each_network_gets_its_own(way, tmp_path):
    """Training, evaluation, prediction and the probe, against the networks called on what NumPy gives them."""
    _, data, given = WAYS[way]
    x, y = data()
    for_student, for_teacher = given(x)
    distiller = made(way, run_eagerly=BACKEND == "tensorflow")
    taught = logits(distiller.teacher, for_teacher)
    in_training = np.asarray(ops.convert_to_numpy(distiller.student(for_student, training=True)), "float64")
    weight = 1 - np.exp(-cross_entropies(y, in_training) / cross_entropies(y, taught))
    before = arrays(distiller.teacher)
    observer = callbacks.RegularizationSamples(tmp_path, (x, y), batch_size=7)
    history = distiller.fit(x, y, batch_size=len(y), epochs=1, verbose=0, callbacks=[observer]).history
    assert not changed(before, arrays(distiller.teacher))
    np.testing.assert_allclose(history["wsl"][0], (weight * divergences(taught, in_training, 4.0)).mean(), rtol=2e-4)
    np.testing.assert_allclose(history["student_loss"][0], cross_entropies(y, in_training).mean(), rtol=1e-4)

    alone = logits(distiller.student, for_student)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), alone, atol=1e-5)
    logs = distiller.evaluate(x, y, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["loss"], cross_entropies(y, alone).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["accuracy"], (alone.argmax(-1) == y).mean(), rtol=1e-5)
    q, q4, p4 = (np.exp(log_softmax(z))[np.arange(len(y)), y] for z in (alone, alone / 4, taught / 4))
    samples = np.abs(4 * (q4 - p4) - (q - 1)) > np.abs(q - 1)
    assert history["clean_regularization_samples"] == [samples.sum()]


@pytest.mark.parametrize(
    "way", [way if way == "layers_of_both" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_files_keep_what_each_is_given(way, tmp_path):
    """Saved in graphs, loaded in safe mode, and continued to the same bits."""
    x, y = WAYS[way][1]()

    def fit(distiller):
        return distiller.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0).history

    whole, distiller = made(way, 0.1), made(way, 0.1)
    fit(whole)
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    loaded.teacher = distiller.teacher
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def test_each_of_several_teachers_gets_its_own(tmp_path):
    """By the teachers' names; who is not named is given all of the inputs."""
    x, y = images()
    teachers = {"large": network("large", 8, 13), "small": network("small", 4, 9), "same": network("same", 8)}
    student = network("student", 8)
    several = [losses.KD(teacher=name, name=name) for name in teachers]
    settings = {"teacher_inputs": {"small": every_second, "large": keras.layers.Rescaling(3.0)}}
    distiller = Distiller(teachers, student, several, **settings)
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    in_training = np.asarray(ops.convert_to_numpy(student(x, training=True)), "float64")
    logs = distiller.train_on_batch(x, y, return_dict=True)
    for name, given in {"large": 3 * x, "small": every_second(x), "same": x}.items():
        expected = divergences(logits(teachers[name], given), in_training, 4.0).mean()
        np.testing.assert_allclose(logs[name], expected, rtol=2e-4, err_msg=name)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    loaded.teacher = teachers
    again = loaded.teachers(ops.convert_to_tensor(x))
    for name, outputs in distiller.teachers(ops.convert_to_tensor(x)).items():
        np.testing.assert_array_equal(*(ops.convert_to_numpy(each["logits"]) for each in (outputs, again[name])))


@pytest.mark.tensorflow
def test_an_export_takes_what_the_mapping_gives(tmp_path):
    """The student alone knows nothing of it: a server shrinks the images itself."""
    import tensorflow as tf

    x, y = images()
    distiller = made("function", 0.1)
    distiller.fit(x, y, verbose=0)
    export.export_saved_model(distiller.student, tmp_path / "exported")
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(every_second(x)), distiller.predict(x, verbose=0), atol=1e-5)


def test_evaluation_runs_no_teacher_nor_its_inputs():
    (teacher, calls), (student, _) = counted("teacher"), counted("student")
    seen = []

    def noted(inputs):
        seen.append(True)
        return inputs

    distiller = Distiller(teacher, student, losses.WSL(), teacher_inputs=noted)
    distiller.compile("sgd", hard_loss(), run_eagerly=True)
    x, y = np.zeros((8, 6), "float32"), np.zeros(8, "int32")
    distiller.fit(x, y, verbose=0)
    assert seen and calls
    seen.clear()
    calls.clear()
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    assert not seen and not calls


def test_different_inputs_without_a_mapping_are_refused():
    teacher, student = network("teacher", 8), network("student", 4)
    with pytest.raises(ValueError, match="Student and teacher must take the same inputs.*with `student_inputs`"):
        Distiller(teacher, student, losses.WSL())
    distiller = Distiller(None, student, losses.WSL())
    with pytest.raises(ValueError, match="Student and teacher must take the same inputs"):
        distiller.teacher = {"one": teacher}


def test_a_key_that_is_not_there_is_refused():
    x, y = pair()
    teacher, student = network("teacher", 8), network("student", 4)
    distiller = Distiller(teacher, student, losses.WSL(), student_inputs="tiny", teacher_inputs="large")
    distiller.compile("sgd", hard_loss(), run_eagerly=True)
    with pytest.raises(ValueError, match=r"with the key 'tiny'. Received: a dict of \['large', 'small'\]"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="with the key 'tiny'. Received"):
        distiller.predict(x["small"], verbose=0)


@pytest.mark.parametrize("teacher", [network("one", 8), {"one": network("one", 8), "two": network("two", 8)}])
def test_inputs_of_a_teacher_that_is_not_there_are_refused(teacher):
    with pytest.raises(ValueError, match=r"`teacher_inputs` has no teachers \['three'\]. The teachers are"):
        Distiller(teacher, network("student", 4), losses.WSL(), teacher_inputs={"three": every_second})
