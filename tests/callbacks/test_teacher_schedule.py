"""Online distillation: which checkpoint teaches when, that it does, and that lockstep training is the same."""

import os

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, callbacks, losses, models, teacher_checkpoints
from tests.common import arrays, examples, hard_loss, network

STEPS, BATCH = 4, 8


class TeacherSays(losses.DistillationLoss):
    """The teacher's first logit: what the logs have of it tells who taught."""

    def per_example(self, labels, student, teacher):
        return teacher["logits"][:, 0] + 0.0 * student["logits"][:, 0]


class Constant(keras.layers.Layer):
    """Gives one number for everything."""

    def build(self, shape):
        self.number = self.add_weight(shape=(), name="number")

    def call(self, inputs):
        return keras.ops.zeros_like(inputs[:, :5]) + self.number


def constant_teacher(number=-1.0):
    model = keras.Sequential([keras.Input((6,)), Constant(name="constant")], name="teacher")
    model.layers[0].number.assign(number)
    return model


def written(folder, counts, unit="epochs"):
    """A folder of checkpoints of the constant teacher, each of which says its count."""
    for count in counts:
        models.save_weights(constant_teacher(count), folder / teacher_checkpoints.file_name(count, unit), "float32")
    return folder


def fit(distiller, epochs, *observers, **settings):
    x, y = examples(STEPS * BATCH)
    distiller.compile(keras.optimizers.SGD(0.3), hard_loss())
    return distiller.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(observers), **settings
    ).history


def heard(schedule, epochs, **settings):
    """What the teacher said on average in each epoch."""
    return fit(Distiller(constant_teacher(), network("student"), TeacherSays()), epochs, schedule, **settings)[
        "teacher_says"
    ]


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 4]), (2, [2, 2, 4, 4, 4]), (3, [3, 3, 3, 4, 4]), (9, [4, 4, 4, 4, 4])]
)
def test_the_checkpoint_of_each_epoch(tmp_path, every, expected):
    folder = written(tmp_path, range(5))
    assert heard(callbacks.TeacherSchedule(folder, every), 5) == pytest.approx(expected)
    # A resumed run goes on where it was.
    found = heard(callbacks.TeacherSchedule(teacher_checkpoints.Checkpoints(folder), every), 5, initial_epoch=2)
    assert found == pytest.approx(expected[2:])


def test_checkpoints_that_are_missing_are_passed_over(tmp_path):
    checkpoints = teacher_checkpoints.Checkpoints(written(tmp_path, [0, 2, 5]))
    assert [int(checkpoints.teaching(done).name[6:12]) for done in range(6)] == [2, 2, 5, 5, 5, 5]
    assert checkpoints.last.name == "epoch-000005.weights.h5"


def test_checkpoints_takes_files_of_its_own_names_alone(tmp_path):
    folder = written(tmp_path, [1, 2])
    for name in ("epoch-7.weights.h5", "epoch-0000٨9.weights.h5", "epoch-000009.weights.h5~"):
        (folder / name).write_bytes(b"")
    (folder / "epoch-000011.weights.h5").mkdir()
    (folder / "epoch-000012.weights.h5").symlink_to("missing")
    os.mkfifo(folder / "epoch-000013.weights.h5")
    assert list(teacher_checkpoints.Checkpoints(folder).paths) == [1, 2]


def test_checkpoints_removes_what_a_killed_process_left(tmp_path):
    left = tmp_path / "epoch-000001.weights.h5.0123456789abcdef.writing"
    left.write_bytes(b"half")
    fit(Distiller(constant_teacher(), network("student"), TeacherSays()), 1, callbacks.Checkpoints(tmp_path))
    assert not left.exists() and len(teacher_checkpoints.Checkpoints(tmp_path).paths) == 2


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_checkpoint_of_each_step(tmp_path, every):
    folder = written(tmp_path, range(0, 9, every), "steps")
    counts = [every * (step // every + 1) for step in range(2 * STEPS)]
    last = max(range(0, 9, every))
    said = np.minimum(counts, last).reshape(2, STEPS).mean(axis=1)
    assert heard(callbacks.TeacherSchedule(folder, every, "steps"), 2) == pytest.approx(said)


def test_one_of_several_teachers(tmp_path):
    teachers = {"old": constant_teacher(7.0), "new": constant_teacher()}
    distiller = Distiller(
        teachers, network("student"), [TeacherSays(teacher="old", name="a"), TeacherSays(teacher="new", name="b")]
    )
    history = fit(distiller, 2, callbacks.TeacherSchedule(written(tmp_path, [1, 2]), teacher="new"))
    assert history["a"] == pytest.approx([7, 7]) and history["b"] == pytest.approx([1, 2])


def trained_teacher(observers, every):
    """A teacher that trains on labels, and the initial one."""
    keras.utils.set_random_seed(0)
    teacher = network("teacher", width=12)
    start = keras.models.clone_model(teacher)
    start.set_weights(teacher.get_weights())
    fit(Distiller(None, teacher), 2, *observers)
    return teacher, start


@pytest.mark.parametrize(("every", "unit"), [(2, "steps"), (1, "epochs")])
def test_lockstep_is_the_schedule_without_files(tmp_path, every, unit):
    """The student's weights are equal, whether its teacher was stored or trains beside it; so are the teacher's."""
    teacher, start = trained_teacher([callbacks.Checkpoints(tmp_path, every, unit)], every)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [teacher_checkpoints.file_name(i, unit) for i in range(0, 9 if unit == "steps" else 3, every)]

    def student(teacher, *observers):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, network("student"), losses.KD(temperature=4.0), student_loss_weight=0.0)
        fit(distiller, 2, *observers)
        return arrays(distiller.student)

    stored = student(start, callbacks.TeacherSchedule(tmp_path, every, unit))
    for found, expected in zip(arrays(start), arrays(teacher)):
        np.testing.assert_array_equal(found, expected)  # The last checkpoint is the trained teacher, to the bit.

    _, beside = trained_teacher([], every)
    trainer = Distiller(None, beside)
    trainer.compile(keras.optimizers.SGD(0.3), hard_loss())
    x, y = examples(STEPS * BATCH)
    batches = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)] * 2
    period = every if unit == "steps" else every * STEPS
    together = student(beside, callbacks.Lockstep(trainer, batches, period))
    for found, expected in zip(arrays(beside), arrays(teacher)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for found, expected in zip(together, stored):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(stored, student(teacher)))  # Offline is another run.


def test_a_probe_hears_the_new_teacher(tmp_path):
    teacher, start = trained_teacher([callbacks.Checkpoints(tmp_path)], 1)
    probe = examples(STEPS * BATCH)

    def shares(teacher, *observers):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, network("student"), losses.KD(temperature=4.0))
        distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
        counts = callbacks.RegularizationSamples(tmp_path / "logs" / str(len(observers)), probe)
        logs = distiller.fit(*probe, epochs=2, verbose=0, shuffle=False, callbacks=[*observers, counts]).history
        return logs["clean_mean_wsl_weight"]

    online_ones = shares(start, callbacks.TeacherSchedule(tmp_path))
    models.load_weights(start, tmp_path / teacher_checkpoints.file_name(1))
    first = shares(start)
    assert online_ones == pytest.approx([first[0], shares(teacher)[1]], rel=1e-6)
    assert abs(online_ones[0] - online_ones[1]) > 1e-6


def test_checkpoints_are_of_the_network_that_is_trained(tmp_path):
    student = network("student")
    before = arrays(student)
    fit(Distiller(constant_teacher(), student, TeacherSays()), 1, callbacks.Checkpoints(tmp_path, dtype="float16"))
    again = network("student")
    models.load_weights(again, tmp_path / teacher_checkpoints.file_name(1))
    for found, expected in zip(arrays(again), arrays(student)):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    models.load_weights(again, tmp_path / teacher_checkpoints.file_name(0))
    for found, expected in zip(arrays(again), before):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_bad_input(tmp_path):
    folder = written(tmp_path, [0, 1])
    student = network("student")
    distiller = Distiller(constant_teacher(), student, TeacherSays())
    for call, message in (
        (lambda: callbacks.TeacherSchedule(folder, 0), "`every` must be a positive integer. Received: every=0"),
        (lambda: callbacks.Checkpoints(folder, 1.5), "`every` must be a positive integer. Received: every=1.5"),
        (lambda: callbacks.TeacherSchedule(folder, unit="hours"), "unit='hours' is unknown"),
        (
            lambda: callbacks.TeacherSchedule(teacher_checkpoints.Checkpoints(folder), unit="steps"),
            "are of epochs. Received: unit=",
        ),
        (lambda: fit(Distiller(None, student), 1, callbacks.TeacherSchedule(folder)), "has no teacher"),
        (lambda: fit(distiller, 1, callbacks.TeacherSchedule(folder, teacher="x")), "and none named 'x'"),
        (lambda: fit(distiller, 1, callbacks.Lockstep(student, [])), "does not train the weights of the teacher"),
        (lambda: fit(distiller, 1, callbacks.Lockstep(distiller.teacher, [])), "is not compiled"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="has no checkpoints such as step-000000001.weights.h5"):
        teacher_checkpoints.Checkpoints(folder, "steps")
    models.save_weights(network("other"), tmp_path / teacher_checkpoints.file_name(1))
    with pytest.raises(ValueError, match="weights"):  # A checkpoint of another network.
        fit(distiller, 1, callbacks.TeacherSchedule(folder))
    trainer = Distiller(None, keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)]))
    trainer.compile("sgd", hard_loss())
    distiller = Distiller(trainer.student, network("student"), TeacherSays())
    x, y = examples(BATCH)
    with pytest.raises(ValueError, match="batches have ended after 1 steps"):
        fit(distiller, 1, callbacks.Lockstep(trainer, [(x, y)]))
