"""Online distillation: checkpoints of a teacher and the schedule by which they are loaded."""

import os

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, callbacks, losses, models, teacher_checkpoints
from tests.common import arrays, examples, hard_loss, network

STEPS, BATCH = 4, 8


class TeacherLogit(losses.DistillationLoss):
    """The teacher's first logit, by which the logs identify the checkpoint."""

    def per_example(self, labels, student, teacher):
        return teacher["logits"][:, 0] + 0.0 * student["logits"][:, 0]


class Constant(keras.layers.Layer):
    """A layer that returns one number for all inputs."""

    def build(self, shape):
        self.number = self.add_weight(shape=(), name="number")

    def call(self, inputs):
        return keras.ops.zeros_like(inputs[:, :5]) + self.number


def constant_teacher(number=-1.0):
    model = keras.Sequential([keras.Input((6,)), Constant(name="constant")], name="teacher")
    model.layers[0].number.assign(number)
    return model


def written(folder, counts, unit="epochs"):
    """Write checkpoints of the constant teacher, each of which returns its count."""
    for count in counts:
        models.save_weights(constant_teacher(count), folder / teacher_checkpoints.file_name(count, unit), "float32")
    return folder


def fit(distiller, epochs, *observers, **settings):
    x, y = examples(STEPS * BATCH)
    distiller.compile(keras.optimizers.SGD(0.3), hard_loss())
    return distiller.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(observers), **settings
    ).history


def mean_teacher_logits(schedule, epochs, **settings):
    """Return the mean of the teacher's output in each epoch."""
    return fit(Distiller(constant_teacher(), network("student"), TeacherLogit()), epochs, schedule, **settings)[
        "teacher_logit"
    ]


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 4]), (2, [2, 2, 4, 4, 4]), (3, [3, 3, 3, 4, 4]), (9, [4, 4, 4, 4, 4])]
)
def test_teacher_schedule_loads_checkpoint_per_epoch(tmp_path, every, expected):
    folder = written(tmp_path, range(5))
    assert mean_teacher_logits(callbacks.TeacherSchedule(folder, every), 5) == pytest.approx(expected)
    # A resumed run continues with the same checkpoint.
    result = mean_teacher_logits(
        callbacks.TeacherSchedule(teacher_checkpoints.Checkpoints(folder), every), 5, initial_epoch=2
    )
    assert result == pytest.approx(expected[2:])


def test_checkpoint_at_skips_missing_checkpoints(tmp_path):
    checkpoints = teacher_checkpoints.Checkpoints(written(tmp_path, [0, 2, 5]))
    assert [int(checkpoints.checkpoint_at(done).name[6:12]) for done in range(6)] == [2, 2, 5, 5, 5, 5]
    assert checkpoints.latest.name == "epoch-000005.weights.h5"


def test_checkpoints_ignores_other_files(tmp_path):
    folder = written(tmp_path, [1, 2])
    for name in ("epoch-7.weights.h5", "epoch-0000٨9.weights.h5", "epoch-000009.weights.h5~"):
        (folder / name).write_bytes(b"")
    (folder / "epoch-000011.weights.h5").mkdir()
    (folder / "epoch-000012.weights.h5").symlink_to("missing")
    os.mkfifo(folder / "epoch-000013.weights.h5")
    assert list(teacher_checkpoints.Checkpoints(folder).paths) == [1, 2]


def test_periodic_checkpoint_removes_temporary_files(tmp_path):
    left = tmp_path / "epoch-000001.weights.h5.0123456789abcdef.writing"
    left.write_bytes(b"half")
    fit(Distiller(constant_teacher(), network("student"), TeacherLogit()), 1, callbacks.PeriodicCheckpoint(tmp_path))
    assert not left.exists() and len(teacher_checkpoints.Checkpoints(tmp_path).paths) == 2


@pytest.mark.parametrize("every", [1, 2, 3])
def test_teacher_schedule_loads_checkpoint_per_step(tmp_path, every):
    folder = written(tmp_path, range(0, 9, every), "steps")
    counts = [every * (step // every + 1) for step in range(2 * STEPS)]
    last = max(range(0, 9, every))
    expected_means = np.minimum(counts, last).reshape(2, STEPS).mean(axis=1)
    assert mean_teacher_logits(callbacks.TeacherSchedule(folder, every, "steps"), 2) == pytest.approx(expected_means)


def test_teacher_schedule_changes_one_of_several_teachers(tmp_path):
    teachers = {"old": constant_teacher(7.0), "new": constant_teacher()}
    distiller = Distiller(
        teachers, network("student"), [TeacherLogit(teacher="old", name="a"), TeacherLogit(teacher="new", name="b")]
    )
    history = fit(distiller, 2, callbacks.TeacherSchedule(written(tmp_path, [1, 2]), teacher="new"))
    assert history["a"] == pytest.approx([7, 7]) and history["b"] == pytest.approx([1, 2])


def trained_teacher(observers, every):
    """Return a teacher trained on labels, and a copy of the initial one."""
    keras.utils.set_random_seed(0)
    teacher = network("teacher", width=12)
    start = keras.models.clone_model(teacher)
    start.set_weights(teacher.get_weights())
    fit(Distiller(None, teacher), 2, *observers)
    return teacher, start


@pytest.mark.parametrize(("every", "unit"), [(2, "steps"), (1, "epochs")])
def test_periodic_checkpoint_and_schedule_end_with_the_trained_teacher(tmp_path, every, unit):
    """The last checkpoint is the trained teacher bit for bit, and online distillation differs from offline."""
    teacher, start = trained_teacher([callbacks.PeriodicCheckpoint(tmp_path, every, unit)], every)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [teacher_checkpoints.file_name(i, unit) for i in range(0, 9 if unit == "steps" else 3, every)]

    def student(teacher, *observers):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, network("student"), losses.KD(temperature=4.0), student_loss_weight=0.0)
        fit(distiller, 2, *observers)
        return arrays(distiller.student)

    stored = student(start, callbacks.TeacherSchedule(tmp_path, every, unit))
    for result, expected in zip(arrays(start), arrays(teacher)):
        np.testing.assert_array_equal(result, expected)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(stored, student(teacher)))


def test_regularization_samples_uses_the_new_teacher(tmp_path):
    teacher, start = trained_teacher([callbacks.PeriodicCheckpoint(tmp_path)], 1)
    clean_data = examples(STEPS * BATCH)

    def mean_weights(teacher, *observers):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, network("student"), losses.KD(temperature=4.0))
        distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
        counts = callbacks.RegularizationSamples(tmp_path / "logs" / str(len(observers)), clean_data)
        logs = distiller.fit(*clean_data, epochs=2, verbose=0, shuffle=False, callbacks=[*observers, counts]).history
        return logs["clean_mean_wsl_weight"]

    online = mean_weights(start, callbacks.TeacherSchedule(tmp_path))
    models.load_weights(start, tmp_path / teacher_checkpoints.file_name(1))
    first = mean_weights(start)
    assert online == pytest.approx([first[0], mean_weights(teacher)[1]], rel=1e-6)
    assert abs(online[0] - online[1]) > 1e-6


def test_periodic_checkpoint_saves_the_student_of_a_distiller(tmp_path):
    student = network("student")
    before = arrays(student)
    fit(
        Distiller(constant_teacher(), student, TeacherLogit()),
        1,
        callbacks.PeriodicCheckpoint(tmp_path, dtype="float16"),
    )
    again = network("student")
    models.load_weights(again, tmp_path / teacher_checkpoints.file_name(1))
    for result, expected in zip(arrays(again), arrays(student)):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6)
    models.load_weights(again, tmp_path / teacher_checkpoints.file_name(0))
    for result, expected in zip(arrays(again), before):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6)


def test_teacher_schedule_refuses_invalid_input(tmp_path):
    folder = written(tmp_path, [0, 1])
    student = network("student")
    distiller = Distiller(constant_teacher(), student, TeacherLogit())
    for call, message in (
        (
            lambda: callbacks.TeacherSchedule(folder, 0),
            "`update_freq` must be a positive integer",
        ),
        (
            lambda: callbacks.PeriodicCheckpoint(folder, 1.5),
            "`save_freq` must be a positive integer. Received: save_freq=1.5",
        ),
        (lambda: callbacks.TeacherSchedule(folder, update_freq_unit="hours"), "Received: update_freq_unit='hours'"),
        (
            lambda: callbacks.TeacherSchedule(teacher_checkpoints.Checkpoints(folder), update_freq_unit="steps"),
            "must be the unit of the checkpoints, 'epochs'. Received: update_freq_unit=",
        ),
        (lambda: fit(Distiller(None, student), 1, callbacks.TeacherSchedule(folder)), "has no teacher"),
        (lambda: fit(distiller, 1, callbacks.TeacherSchedule(folder, teacher="x")), "and none named 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="has no checkpoints such as step-000000001.weights.h5"):
        teacher_checkpoints.Checkpoints(folder, "steps")
    models.save_weights(network("other"), tmp_path / teacher_checkpoints.file_name(1))
    with pytest.raises(ValueError, match="weights"):  # A checkpoint of another network.
        fit(distiller, 1, callbacks.TeacherSchedule(folder))
