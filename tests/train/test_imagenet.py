"""ImageNet's script and recipes, on a small tree of JPEG files."""

import dataclasses
import json
import types

import keras
import numpy as np
import pytest
from absl import flags

import imagenet
from keras_wsl import callbacks, data, models
from keras_wsl.training import artifacts, build, build_losses, config, recipes, runner
from tests.common import image_network, run_script
from tests.training.test_runner import OUTPUTS

EXPORTS = True  # See conftest.py.

SMALL = config.ImageNetConfig(
    student="tiny", method="none", epochs=2, batch_size=8, decay_epochs=(1,), image_size=32, max_train_examples=16
)
RESNETS = {"teacher": "imagenet_resnet34", "student": "imagenet_resnet18"}
MOBILENET = {"teacher": "imagenet_resnet50", "student": "imagenet_mobilenet_v1"}


@pytest.fixture
def no_saved_model(monkeypatch):
    """Its export, tested elsewhere, is a third of the time of so small a run."""
    monkeypatch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """24 training and 12 validation images of 40 x 50 pixels, of six classes that differ in brightness."""
    from PIL import Image

    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in range(6):
            place = folder / part / f"n{label:08}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 60, (40, 50, 3)) + 35 * label
                Image.fromarray(pixels.astype("uint8")).save(place / f"{part}_{i}.JPEG", quality=90)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.weights.h5"
    models.save_weights(models.build("tiny", 6, input_shape=(32, 32, 3)), path)
    return path


def _damaged(tree, tmp_path):
    """A copy of links to the tree, in which the bytes of one training image are no JPEG."""
    for file in tree.rglob("*.JPEG"):
        link = tmp_path / "damaged" / file.relative_to(tree)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    bad = tmp_path / "damaged" / "train" / "n00000002" / "train_1.JPEG"
    bad.unlink()
    bad.write_bytes(b"not an image")
    return tmp_path / "damaged", bad


def _splits(folder, **changes):
    return data.imagenet(folder, **{"image_size": 32, **changes})


def _weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def test_script_writes_all_outputs(tree, teacher, tmp_path):
    out = tmp_path / "run"
    wanted = dataclasses.replace(
        SMALL, method="wsl", teacher="tiny", teacher_weights=str(teacher), epochs=1, decay_epochs=()
    )
    ended = run_script("imagenet.py", f"--data_dir={tree}", f"--output_dir={out}", *config.to_lines(wanted))
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    result = json.loads((out / "result.json").read_text())
    assert f"test accuracy {result['test_accuracy']:.4f}" in ended.stdout
    assert (result["train_examples"], result["test_examples"]) == (16, 12)
    assert result["data"]["test"] == {"examples": 12, "classes": 6, "unreadable_images": 0, "unreadable": []}
    assert result["config"] == config.read_lines(out / "run.flags")
    (row,) = artifacts.read_csv(out / "epochs.csv")
    # WSL as published for ImageNet, beside the whole loss of the labels.
    assert row["distillation_loss"] == pytest.approx(2.5 * row["wsl"], rel=1e-5)
    assert row["loss"] == pytest.approx(row["student_loss"] + 2.5 * row["wsl"], rel=1e-4)
    assert 0 <= row["val_accuracy"] <= row["val_top_5_accuracy"] == result["test_top_5_accuracy"] <= 1
    assert {"clean_regularization_samples", "regularization_samples"} <= set(row)
    assert 0 <= result["teacher_accuracy"] <= 1


def test_script_prints_an_error_in_one_line(tmp_path):
    absent = run_script("imagenet.py", "--method=none", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'run'}")
    assert absent.returncode == 2
    last = absent.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: ") and "imagenet2012 must have a" in last and "train/ and val/" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "wls"}, "no method 'wls'. Expected one of .*'wsl'"),
        ({"method": "pkd"}, "no method 'pkd'"),
        ({"method": "wsl"}, "--method=wsl needs a trained teacher"),
        ({"image_size": 0}, "`image_size` must be a positive integer"),
        ({"image_size": 32, "resize": 20}, "`resize` must be at least `image_size`"),
        ({"max_train_examples": 1000}, "1000 of 24"),
    ],
)
def test_script_with_invalid_settings_writes_nothing(changes, message, tree, tmp_path, monkeypatch):
    given = types.SimpleNamespace(data_dir=str(tree), output_dir=str(tmp_path / "run"), resume=False)
    monkeypatch.setattr(imagenet, "flags", types.SimpleNamespace(FLAGS=given))
    with pytest.raises(ValueError, match=message) as caught:
        imagenet.train(dataclasses.replace(SMALL, **changes))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_saved_model")
def test_run_skips_and_counts_unreadable_images(tree, tmp_path):
    folder, bad = _damaged(tree, tmp_path)
    wanted = dataclasses.replace(SMALL, max_train_examples=0, epochs=1, decay_epochs=())
    result = runner.run(wanted, _splits(folder), tmp_path / "run", top_5=True, verbose=0)
    assert result["data"]["train"] == {"examples": 24, "classes": 6, "unreadable_images": 1, "unreadable": [str(bad)]}
    assert "test_top_5_accuracy" in result
    with pytest.raises(
        data.TooManyCorruptImagesError, match=r"1 images could not be read, and the limit is 0.*train_1.JPEG"
    ):
        runner.run(wanted, _splits(folder, max_corrupt_images=0), tmp_path / "strict", verbose=0)
    assert not (tmp_path / "strict" / "result.json").exists()


class _Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("no_saved_model")
def test_run_resumes_to_the_same_bits(tree, tmp_path, monkeypatch):
    wanted = dataclasses.replace(SMALL, max_train_examples=0, backup_every_steps=1)
    runner.run(wanted, _splits(tree), tmp_path / "whole", top_5=True, verbose=0)
    save, saves = callbacks.ExactBackupAndRestore._save, []

    def stopping(self, *args, **kwargs):
        save(self, *args, **kwargs)
        saves.append(list(self.initial_position))
        if saves[-1] == [1, 1]:  # In the middle of the second epoch.
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ExactBackupAndRestore, "_save", stopping)
        with pytest.raises(_Stop):
            runner.run(wanted, _splits(tree), tmp_path / "stopped", top_5=True, verbose=0)
    assert not (tmp_path / "stopped" / "student.keras").exists()
    runner.run(wanted, _splits(tree), tmp_path / "stopped", top_5=True, resume=True, verbose=0)
    for one, other in zip(*(_weights(tmp_path / name / "student.keras") for name in ("whole", "stopped")), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "whole" / "epochs.csv").read_text() == (tmp_path / "stopped" / "epochs.csv").read_text()


# methods.md 1.3 and 3.
@pytest.mark.parametrize(
    "method, labels, pair, expected",
    [
        ("wsl", 1, {}, {"temperature": 2, "weight": 2.5}),
        ("kd", 0.5, {}, {"temperature": 1, "weight": 0.5}),
        ("dkd", 1, RESNETS, {"temperature": 1, "alpha": 1, "beta": 0.5, "weight": 1}),
        ("dkd", 1, MOBILENET, {"temperature": 1, "alpha": 1, "beta": 2}),
        ("rld", 1, RESNETS, {"temperature": 1, "alpha": 1, "beta": 0.5}),
        ("rld", 1, MOBILENET, {"temperature": 1, "alpha": 1, "beta": 2}),
        ("dist", 1, {}, {"temperature": 1, "beta": 2, "gamma": 2}),
        ("lskd", 1, {}, {"temperature": 2, "weight": 9}),
        ("overhaul", 1, {}, {"weight": 0.1}),  # Of 1e-3, which is in the loss: 1e-4.
        ("reviewkd", 1, RESNETS, {"weight": 1}),
        ("reviewkd", 1, MOBILENET, {"weight": 8}),
        ("at", 1, {}, {"weight": 1000}),
    ],
)
def test_recipe_has_the_published_values(method, labels, pair, expected):
    wanted = config.ImageNetConfig(method=method, **pair)
    recipe = recipes.get_recipe(wanted)
    (loss,) = build_losses.build_main_losses(wanted, None)
    assert recipe.student_loss_weight == labels
    assert {name: getattr(loss, name) for name in expected} == expected
    assert recipe.teacher_batch_statistics == (method == "overhaul")
    assert recipe.warmup_epochs == {"dkd": 1, "rld": 1, "reviewkd": 1}.get(method, 0)


def test_flags_override_published_values():
    wanted = config.ImageNetConfig(method="dkd", **RESNETS, alpha=3.0, temperature=2.0, loss_kwargs=("beta=7",))
    (loss,) = build_losses.build_main_losses(wanted, None)
    assert (loss.weight, loss.temperature, loss.beta) == (3.0, 2.0, 7)


BLOCKS = ("block1", "block2", "block3", "block4")
PREACT = tuple(f"{name}_preact" for name in BLOCKS)


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("at", BLOCKS),
        ("vid", BLOCKS),
        ("nst", BLOCKS),
        ("ab", PREACT),
        ("overhaul", PREACT),
        ("reviewkd", (*PREACT, "pooled")),
        ("fsp", ("stem", *BLOCKS)),
        ("sp", ("block4",)),
        ("ft", ("block4",)),
        ("fitnet", ("block2",)),
        ("rkd", ("pooled",)),
        ("crd", ("pooled",)),
        ("wsl", None),
        ("kd", None),
        ("tf_kd", None),
    ],
)
def test_layers_include_the_fourth_block_if_both_networks_have_it(loss, expected):
    four, three = (image_network("network", (4, 4, 6, 8, 10)[:stages], input_shape=(16, 16, 3)) for stages in (5, 4))
    assert build_losses._layers(loss, four, four) == ({} if expected is None else {"layers": list(expected)})
    assert build_losses._layers(loss, four, three) == build_losses._layers(loss, three, four) == {}
    assert build_losses._layers(loss, four, None) == {}
    if loss in recipes.IMAGENET and loss not in ("ab", "fsp", "crd"):  # The loss takes what was found.
        assert build_losses.build_main_losses(config.ImageNetConfig(method=loss), None, four, four)[0].name == loss


def test_config_defaults_are_the_published_recipe():
    wanted = config.ImageNetConfig()
    assert (wanted.epochs, wanted.batch_size, wanted.learning_rate, wanted.decay_epochs) == (
        100,
        256,
        0.1,
        (30, 60, 90),
    )
    assert (wanted.optimizer, wanted.momentum, wanted.nesterov, wanted.weight_decay) == ("sgd", 0.9, True, 1e-4)
    assert (wanted.image_size, wanted.schedule, wanted.label_smoothing, wanted.global_clipnorm) == (
        224,
        "steps",
        0.0,
        0.0,
    )
    rate = build.build_learning_rate(wanted, 5005, wanted.epochs)
    for epoch, expected in ((0, 0.1), (30, 0.01), (60, 1e-3), (90, 1e-4)):
        assert float(rate(epoch * 5005)) == pytest.approx(expected)
        assert epoch == 0 or float(rate(epoch * 5005 - 1)) == pytest.approx(10 * expected)
    optimizer = build.build_optimizer(wanted, 5005, wanted.epochs)
    assert optimizer.nesterov and optimizer.momentum == 0.9 and optimizer.weight_decay == 1e-4


def test_from_flags_returns_all_settings():
    values = flags.FlagValues()
    config.define_flags(values, config.ImageNetConfig)
    values(["script"])
    assert config.from_flags(values, config.ImageNetConfig) == config.ImageNetConfig()
    wanted = dataclasses.replace(SMALL, alpha=1.5, resize=40, max_corrupt_images=3, nesterov=False)
    values(["script", *config.to_lines(wanted)])
    assert config.from_flags(values, config.ImageNetConfig) == wanted
