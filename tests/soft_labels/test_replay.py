"""Training on soft labels is training with the teacher: the same batches, logits, losses, counts and weights."""

import itertools

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, callbacks, data, losses, models, optimizers, soft_labels, teacher_checkpoints
from tests.common import bright_splits, hard_loss, image_network

pytestmark = pytest.mark.eager


BACKEND = keras.backend.backend()
STEPS, BATCH = 3, 16


def _train():
    return bright_splits(40).train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    keras.utils.set_random_seed(0)
    teacher = image_network("teacher", classes=3)
    folder = tmp_path_factory.mktemp("soft") / "labels"
    return teacher, soft_labels.write_soft_labels(
        teacher, _train(), folder, seed=3, num_views=2, batch_size=40, verbose=0
    )


def _distiller(teacher, *loss, **settings):
    keras.utils.set_random_seed(1)
    student = image_network("student", classes=3)
    distiller = Distiller(teacher, student, [*loss] or losses.WSL(weight=2.25), **settings)
    distiller.compile(optimizers.SGD(0.01, momentum=0.9), hard_loss(), metrics=["accuracy"])
    return distiller


def _fit(distiller, observers=(), epochs=3, **batches):
    found = data.train_batches(_train(), seed=3, batch_size=BATCH, **batches)
    settings = {"epochs": epochs, "steps_per_epoch": STEPS, "shuffle": False, "verbose": 0}
    return distiller.fit(found, callbacks=[*observers], **settings).history


@pytest.mark.parametrize("pipeline", ["numpy", pytest.param("tensorflow", marks=pytest.mark.tensorflow)])
def test_batches_have_logits_of_their_pixels(made, pipeline):
    teacher, store = made
    batches = data.train_batches(_train(), seed=8, batch_size=BATCH, soft_labels=store, pipeline=pipeline)
    plain = data.train_batches(_train(), seed=8, batch_size=BATCH, num_views=2, pipeline=pipeline)
    for step, (batch, other) in enumerate(itertools.islice(zip(batches, plain), 3 * STEPS)):
        inputs, targets = keras.tree.map_structure(np.asarray, batch)
        np.testing.assert_array_equal(targets["index"], np.asarray(other[1]["index"]), err_msg=f"step {step}")
        expected = teacher.predict_on_batch(inputs)
        np.testing.assert_allclose(targets["teacher_logits"], expected, atol=1e-5)
    for inputs, targets in data.eval_batches(_train(), 25, soft_labels=store, pipeline=pipeline):
        expected = teacher.predict_on_batch(np.asarray(inputs))
        np.testing.assert_allclose(np.asarray(targets["teacher_logits"]), expected, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        losses.WSL(weight=2.25),
        pytest.param(losses.KD(weight=0.9), marks=pytest.mark.slow),
        pytest.param(losses.DKD(weighting="wsl"), marks=pytest.mark.slow),
    ],
    ids=lambda loss: loss.name,
)
def test_training_with_soft_labels_matches_live_teacher(made, loss, tmp_path):
    teacher, store = made
    histories, weights = [], []
    probe = _train().stratified_subset(10)
    for given, taught_by in ((None, teacher), (store, "teacher_logits")):
        distiller = _distiller(taught_by, type(loss).from_config(loss.get_config()))
        clean = data.eval_batches(probe, 10, soft_labels=given, pipeline="numpy")
        counts = callbacks.RegularizationSamples(tmp_path / str(len(weights)), [clean[0]])
        histories.append(_fit(distiller, [counts], **({"soft_labels": store} if given else {"num_views": 2})))
        weights.append(distiller.student.get_weights())
    live, given = histories
    assert live.keys() == given.keys() and "clean_regularization_samples" in live
    for name, values in live.items():
        np.testing.assert_allclose(given[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("storage", [{"dtype": "float16"}, {"top_k": 3}, {"top_k": 2}], ids=["float16", "all", "top_2"])
def test_smaller_storage_approximates_losses(made, storage, tmp_path):
    teacher, store = made
    small = soft_labels.write_soft_labels(
        teacher, _train(), tmp_path, seed=3, num_views=2, batch_size=40, verbose=0, **storage
    )
    exact, near = (_fit(_distiller("teacher_logits"), epochs=1, soft_labels=s) for s in (store, small))
    for name in ("loss", "wsl", "mean_wsl_weight"):  # Of three classes the two highest and the label leave one at most.
        np.testing.assert_allclose(near[name], exact[name], rtol=2e-3, err_msg=name)


def test_saved_distiller_resumes_without_teacher(made, tmp_path):
    store = made[1]
    distiller = _distiller("teacher_logits")
    _fit(distiller, epochs=1, soft_labels=store)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher is None
    loaded.teacher = "teacher_logits"
    ones, others = (_fit(model, epochs=1, soft_labels=store)["loss"] for model in (distiller, loaded))
    np.testing.assert_allclose(others, ones, rtol=1e-5)


def test_evaluate_does_not_need_teacher_logits(made):
    distiller = _distiller("teacher_logits")
    batches = data.eval_batches(_train(), 25)
    assert set(distiller.evaluate(batches, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_one_of_several_teachers_may_be_cached(made):
    teacher, store = made
    loss = losses.KD(teacher={"here": 1.0, "given": 1.0})
    history = _fit(_distiller({"here": teacher, "given": "teacher_logits"}, loss), epochs=1, soft_labels=store)
    alone = _fit(_distiller(teacher, losses.KD()), epochs=1, num_views=2)
    np.testing.assert_allclose(history["kd"], alone["kd"], rtol=1e-4)  # Both say the same.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: _distiller("teacher_logits", losses.FitNet()), "fitnet needs the layers .* logits alone are cached"),
        (
            lambda: _distiller("teacher_logits", teacher_batch_statistics=True),
            "`teacher_batch_statistics` needs a teacher that runs",
        ),
        (lambda: _fit(_distiller("teacher_logits")), r"teacher's logits as 'teacher_logits'. Received: other keys"),
        (
            lambda: _distiller("logits").train_on_batch(np.zeros((2, 8, 8, 3)), np.zeros(2, int)),
            "must be a dict with the teacher's logits as 'logits'",
        ),
        (
            lambda: _distiller("a").train_on_batch(
                np.zeros((2, 8, 8, 3)), {"labels": np.zeros(2, int), "a": np.zeros((2, 4), "float32")}
            ),
            "'a' must have one logit per class of the student, 3",
        ),
    ],
    ids=["inner_layers", "batch_statistics", "no_logits", "no_dict", "classes"],
)
def test_cached_teacher_rejects_unsupported_uses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_train_batches_rejects_other_num_views(made):
    with pytest.raises(ValueError, match="`num_views` must be .* soft labels, 2. Received: num_views=5"):
        data.train_batches(_train(), seed=0, batch_size=8, num_views=5, soft_labels=made[1])


def test_lockstep_rejects_cached_teacher(made, tmp_path):
    distiller = _distiller("teacher_logits")
    models.save_weights(image_network("other", classes=3), tmp_path / teacher_checkpoints.file_name(1))
    with pytest.raises(ValueError, match="requires a teacher that is a network"):
        _fit(distiller, [callbacks.TeacherSchedule(tmp_path)], epochs=1, soft_labels=made[1])


@pytest.mark.tensorflow
def test_corrupt_image_has_no_soft_label(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in ("a", "b"):
        (tmp_path / "tree" / label).mkdir(parents=True)
        for k in range(4):
            pixels = np.random.default_rng(k).integers(0, 256, (12, 12, 3), "uint8")
            image.fromarray(pixels).save(tmp_path / "tree" / label / f"{k}.jpg")
    good = (tmp_path / "tree" / "a" / "1.jpg").read_bytes()
    (tmp_path / "tree" / "a" / "1.jpg").write_bytes(b"no image".ljust(len(good), b"."))
    images = data.image_folder(tmp_path / "tree", image_size=8, resize=10)
    teacher = image_network("teacher", classes=2)
    store = soft_labels.write_soft_labels(teacher, images, tmp_path / "soft", num_views=1, batch_size=3, verbose=0)
    for inputs, targets in data.augmented_batches(images, 8, seed=0, view=0):
        np.testing.assert_allclose(
            store.lookup(0, targets["index"].numpy()), teacher.predict_on_batch(inputs), atol=1e-5
        )
    assert len(targets["index"]) == 7
    with pytest.raises(ValueError, match="label of example 1 .* is missing, because the example could not be read"):
        store.lookup(0, [0, 1])
    batches = data.train_batches(images, seed=0, batch_size=4, soft_labels=store)
    assert sum(len(y["teacher_logits"]) for _, y in itertools.islice(batches, 2)) == 7
