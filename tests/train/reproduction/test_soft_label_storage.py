"""soft_label_storage.py: its plan, what it compares, its table, and the whole path on a few small images."""

import dataclasses
import types

import keras
import numpy as np
import pytest
from scipy.special import softmax

from keras_wsl import data, models, soft_labels
from keras_wsl.training import config
from reproduction import launcher, soft_label_storage
from reproduction.run_store import RunRecord
from tests.common import bright_splits
from tests.train.reproduction.test_bias_variance import processes

assert processes  # A fixture.

WANTED = config.Config(
    teacher="tiny",
    teacher_weights="teacher.weights.h5",
    student="tiny",
    method="wsl",
    temperature=4.0,
    num_views=1,
    epochs=1,
    batch_size=16,
    decay_epochs=(),
)
STORAGES = soft_label_storage.storage_formats([2], 4.0)


def test_the_plan(tmp_path):
    runs = soft_label_storage.plan_runs(WANTED, tmp_path, STORAGES)
    assert list(runs) == ["live teacher", "float32", "float16", "top-2"]
    assert len({folder for folder, _ in runs.values()}) == 4
    assert runs["live teacher"][1] == WANTED
    for name in STORAGES:
        _, wanted = runs[name]
        assert wanted.soft_labels == str(tmp_path / "stores" / name)
        assert (wanted.teacher, wanted.teacher_weights, wanted.num_views) == ("", "", 0)
        assert (wanted.method, wanted.epochs, wanted.seed) == (WANTED.method, WANTED.epochs, WANTED.seed)


def test_what_a_loss_hears(tmp_path):
    train = bright_splits(12).train
    teacher = models.build("tiny", 3, input_shape=(8, 8, 3))
    written = {
        name: soft_labels.write_soft_labels(teacher, train, tmp_path / name, seed=0, num_views=1, verbose=0, **storage)
        for name, storage in STORAGES.items()
    }
    selected = {
        name: softmax(soft_label_storage.stored_logits(store, 0, train, 4.0) / 4, axis=1)
        for name, store in written.items()
    }
    np.testing.assert_allclose(selected["float16"], selected["float32"], atol=1e-3)
    # Of three classes, two highest and the label leave one at most: its mass says all.
    np.testing.assert_allclose(selected["top-2"], selected["float32"], atol=1e-3)


def test_the_distance_of_weights():
    networks = [keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in range(2)]
    networks[0].set_weights([np.array([[3.0]]), np.array([4.0])])
    networks[1].set_weights([np.array([[3.0]]), np.array([5.0])])
    assert soft_label_storage.relative_distance(*networks) == pytest.approx(0.2)


def test_what_is_missing_is_said():
    with pytest.raises(
        ValueError, match="--teacher, --teacher_weights, --temperature, --num_views and --output_dir are needed"
    ):
        soft_label_storage.run(WANTED, types.SimpleNamespace(output_dir=""))


@pytest.mark.slow
def test_the_whole_path(tmp_path, processes):
    splits = bright_splits(48, 30)
    data.save_npz(splits, tmp_path / "images.npz")
    weights = tmp_path / "teacher.weights.h5"
    models.save_weights(models.build("tiny", 3, input_shape=(8, 8, 3)), weights)
    wanted = dataclasses.replace(WANTED, teacher_weights=str(weights))
    values = types.SimpleNamespace(
        output_dir=tmp_path / "runs",
        top_k=["2"],
        jobs=1,
        data_dir=tmp_path / "images.npz",
        results=tmp_path / "results",
    )
    soft_label_storage.run(wanted, values)
    text = (values.results / "soft_labels.md").read_text()
    assert "| live teacher |" in text and "| top-2 | 20 |" in text
    row = RunRecord.read(tmp_path / "runs" / "float32").row
    assert f"{100 * row['test_accuracy']:.2f}" in text
    live, cached = (
        launcher.compute_logits(keras.saving.load_model(tmp_path / "runs" / name / "student.keras"), splits.test, 30)
        for name in ("live", "float32")
    )
    np.testing.assert_allclose(cached, live, rtol=1e-3, atol=1e-4)
