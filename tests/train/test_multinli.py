"""MultiNLI's script and recipes, on a few pairs of words and a small BERT."""

import dataclasses
import json
import types

import keras
import numpy as np
import pytest
from absl import flags

import multinli
from keras_wsl import callbacks, data, models, optimizers
from keras_wsl.data.multinli import CLASSES
from keras_wsl.models import keras_nlp_backbones
from keras_wsl.training import artifacts, build, build_losses, config, recipes, runner
from tests.common import bert_preset, run_script, text_network
from tests.training.test_runner import OUTPUTS

EXPORTS = True  # See conftest.py.


@pytest.fixture
def no_saved_model(monkeypatch):
    """Its export, tested elsewhere, is a third of the time of so small a run."""
    monkeypatch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras.utils.set_random_seed(3)
    return bert_preset(tmp_path_factory.mktemp("preset") / "bert")


@pytest.fixture(scope="module")
def teacher(preset, tmp_path_factory):
    """The weights of a classifier of all four layers."""
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.weights.h5"
    models.save_weights(keras_nlp_backbones.build(preset), path, dtype="float32")
    return path


def _pairs(count, seed, truncated=0, length=16):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 17, count)
    there = np.arange(length) < lengths[:, None]
    labels = np.arange(count) % 3
    tokens = generator.integers(5, 20, (count, length)) + 15 * labels[:, None]
    tokens[:, 0] = 2
    segments = np.arange(length) >= lengths[:, None] // 2
    return data.SentencePairs(
        np.where(there, tokens, 0),
        np.where(there, segments, 0),
        lengths,
        labels,
        CLASSES,
        truncated=np.arange(count) < truncated,
    )


def _splits(length=16):
    parts = ((24, 0, 5), (12, 1, 2), (9, 2, 0))
    return data.MultiNLI(*(_pairs(*part, length=length) for part in parts))


def _small(preset, **changes):
    small = config.MultiNLIConfig(
        student=preset, student_layers=2, method="none", epochs=1, batch_size=8, sequence_length=16
    )
    return dataclasses.replace(small, **changes)


def _taught(preset, teacher, **changes):
    return _small(preset, **{"teacher": preset, "teacher_weights": str(teacher), **changes})


def _run(wanted, out, **changes):
    pairs = _splits()
    extra_test_sets = {"mismatched": pairs.mismatched}
    return runner.run(
        wanted, pairs, out, build=keras_nlp_backbones.build, extra_test_sets=extra_test_sets, verbose=0, **changes
    )


def _weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


@pytest.mark.slow
@pytest.mark.usefixtures("no_saved_model")
def test_run_on_labels(preset, tmp_path):
    result = _run(_small(preset), tmp_path / "run")
    assert result["data"]["train"] == {"examples": 24, "classes": 3, "truncated_pairs": 5}
    assert result["data"]["test"] == {"examples": 12, "classes": 3, "truncated_pairs": 2}
    assert 0 <= result["mismatched_accuracy"] <= 1 and "teacher_mismatched_accuracy" not in result
    model = keras.saving.load_model(tmp_path / "run" / "student.keras", compile=False)
    assert model.get_layer("backbone").num_layers == 2
    for name, pairs in (("test", _splits().test), ("mismatched", _splits().mismatched)):
        logits = model.predict(pairs.inputs(np.arange(len(pairs))), verbose=0)
        assert np.mean(logits.argmax(-1) == pairs.labels) == pytest.approx(result[f"{name}_accuracy"])


# methods.md 1.4; WSL has no published numbers for it, and keeps CIFAR's.
@pytest.mark.usefixtures("no_saved_model")
@pytest.mark.parametrize(
    "method, labels, weights",
    [
        pytest.param("kd", 0.3, {"kd": 0.7}, marks=pytest.mark.slow),
        pytest.param("wsl", 1, {"wsl": 2.25}, marks=pytest.mark.slow),
        pytest.param("pkd", 0.3, {"pkd": 1000, "kd": 0.7}, marks=pytest.mark.slow),
    ],
)
def test_run_distills_a_deep_teacher_to_a_shallow_student(method, labels, weights, preset, teacher, tmp_path):
    wanted = _taught(preset, teacher, method=method, max_train_examples=15)
    result = _run(wanted, tmp_path / "run")
    (row,) = artifacts.read_csv(tmp_path / "run" / "epochs.csv")
    taught = sum(weight * row[name] for name, weight in weights.items())
    assert row["distillation_loss"] == pytest.approx(taught, rel=1e-4)
    assert row["loss"] == pytest.approx(labels * row["student_loss"] + taught, rel=1e-4)
    deep, pairs = keras_nlp_backbones.build(preset, weights=teacher), _splits().mismatched
    logits = deep.predict(pairs.inputs(np.arange(len(pairs))), verbose=0)
    assert result["teacher_mismatched_accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == pairs.labels))
    assert 0 <= result["teacher_accuracy"] <= 1 and {"mismatched_accuracy", "last_epoch"} <= set(result)
    assert "clean_regularization_samples" in row


class _Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("no_saved_model")
def test_run_resumes_to_the_same_bits(preset, tmp_path, monkeypatch):
    """Dropout, the moments of AdamW and the schedule go on where they were."""
    wanted = _small(preset, student_layers=1, epochs=2, backup_every_steps=1)
    whole = _run(wanted, tmp_path / "whole")
    save = callbacks.ExactBackupAndRestore._save

    def stopping(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if list(self.initial_position) == [1, 1]:  # In the middle of the second epoch.
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ExactBackupAndRestore, "_save", stopping)
        with pytest.raises(_Stop):
            _run(wanted, tmp_path / "stopped")
    stopped = _run(wanted, tmp_path / "stopped", resume=True)
    for one, other in zip(*(_weights(tmp_path / name / "student.keras") for name in ("whole", "stopped")), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "whole" / "epochs.csv").read_text() == (tmp_path / "stopped" / "epochs.csv").read_text()
    for name in ("test_accuracy", "mismatched_accuracy"):
        assert whole[name] == stopped[name]


def test_build_networks_applies_layers(preset, teacher):
    """The student starts from the first layers of a fine-tuned one; the teacher is all of it."""
    wanted = _taught(preset, teacher, method="kd", student_weights=str(teacher))
    deep, shallow = (
        model.get_layer("backbone")
        for model in build.build_networks(wanted, _splits().train, keras_nlp_backbones.build)
    )
    assert (deep.num_layers, shallow.num_layers) == (4, 2)
    for layer in shallow.layers:
        for one, other in zip(layer.get_weights(), deep.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "teacher_layers, student_layers, pairs",
    [
        (12, 3, [(0, 3), (1, 7)]),
        (6, 3, [(0, 1), (1, 3)]),
        (12, 6, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]),
        (4, 2, [(0, 1)]),
        (3, 3, [(0, 0), (1, 1)]),
    ],
)
def test_build_main_losses_pkd_skips_layers(teacher_layers, student_layers, pairs):
    teacher, student = text_network("teacher", teacher_layers), text_network("student", student_layers)
    patient, soft = build_losses.build_main_losses(config.MultiNLIConfig(method="pkd"), None, teacher, student)
    for position, names in enumerate((patient.student_layers, patient.teacher_layers)):
        assert list(names) == [f"transformer_layer_{pair[position]}" for pair in pairs]
    assert (patient.weight, patient.normalize, patient.position) == (1000, False, 0)
    assert (soft.temperature, soft.weight, soft.divide_by_num_classes) == (5.0, 0.7, True)
    assert recipes.get_recipe(config.MultiNLIConfig(method="pkd")).student_loss_weight == 0.3


@pytest.mark.parametrize("teacher_layers, student_layers", [(2, 3), (3, 1)])
def test_build_main_losses_pkd_refuses_a_deeper_student(teacher_layers, student_layers):
    teacher, student = text_network("teacher", teacher_layers), text_network("student", student_layers)
    with pytest.raises(ValueError, match=f"a student of {student_layers} layers and a teacher of {teacher_layers}"):
        build_losses.build_main_losses(config.MultiNLIConfig(method="pkd"), None, teacher, student)


def test_build_main_losses_applies_settings_to_the_first_loss():
    wanted = config.MultiNLIConfig(method="pkd", alpha=10.0, loss_kwargs=("normalize=True",))
    patient, soft = build_losses.build_main_losses(wanted, None)
    assert (patient.weight, patient.normalize, soft.weight) == (10.0, True, 0.7)
    (loss,) = build_losses.build_main_losses(config.MultiNLIConfig(method="kd", temperature=10.0), None)
    assert (loss.temperature, loss.weight, loss.divide_by_num_classes) == (10.0, 0.7, True)


def test_get_recipe_refuses_methods_on_feature_maps():
    with pytest.raises(ValueError, match="no method 'at'. Expected one of .*'pkd'"):
        recipes.get_recipe(config.MultiNLIConfig(method="at"))


def test_config_defaults_are_the_published_recipe(preset):
    wanted = config.MultiNLIConfig()
    assert (wanted.epochs, wanted.batch_size, wanted.sequence_length) == (4, 32, 128)
    steps, student = 100, keras_nlp_backbones.build(preset, layers=2)
    train = types.SimpleNamespace(steps_per_epoch=lambda batch_size: {32: steps}[batch_size])
    model = build.build_distiller(wanted, recipes.get_recipe(wanted), None, student, [], train)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert (optimizer.epsilon, optimizer.weight_decay, optimizer.global_clipnorm) == (1e-6, 0.01, 1.0)
    schedule = optimizer._learning_rate
    assert type(schedule) is optimizers.LinearWarmupDecay
    assert schedule.get_config() == {"learning_rate": 5e-5, "warmup_steps": 40, "steps": 400}
    decayed = {v.path.rsplit("/")[-1] for v in student.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel", "embeddings"}


def test_from_flags_returns_all_settings(preset):
    values = flags.FlagValues()
    config.define_flags(values, config.MultiNLIConfig)
    values(["script"])
    assert config.from_flags(values, config.MultiNLIConfig) == config.MultiNLIConfig()
    wanted = _small(preset, teacher_layers=3, lowercase=True, vocabulary="words.txt", decay_epochs=(1,), alpha=0.5)
    values(["script", *config.to_lines(wanted)])
    assert config.from_flags(values, config.MultiNLIConfig) == wanted
    assert wanted.student_options() == {"layers": 2} and wanted.teacher_options() == {"layers": 3}
    assert config.MultiNLIConfig().student_options() == {"layers": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A TFDS folder with a small `glue/mnli`: prepared as TFDS does, without a network."""
    import tensorflow_datasets as tfds

    class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "glue"
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="mnli")]  # noqa: RUF012
        url_infos = {}  # noqa: RUF012  Else TFDS looks for the checksums of downloads beside the code.

        def _info(self):
            text = tfds.features.Text()
            label = tfds.features.ClassLabel(names=list(CLASSES))
            features = {"premise": text, "hypothesis": text, "label": label, "idx": np.int32}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            sizes = {"train": 18, "validation_matched": 9, "validation_mismatched": 6}
            return {name: self._generate_examples(count, seed) for seed, (name, count) in enumerate(sizes.items())}

        def _generate_examples(self, count, seed):
            generator = np.random.default_rng(seed)
            for i in range(count):
                words = [" ".join(f"w{word}" for word in generator.integers(0, 45, 4 + i)) for _ in range(2)]
                yield i, {"premise": words[0], "hypothesis": words[1], "label": i % 3, "idx": i}

    place = tmp_path_factory.mktemp("tfds")
    Glue(data_dir=place, config="mnli").download_and_prepare()
    return place


@pytest.mark.slow  # test_imagenet.py has a shorter one.
def test_script_writes_all_outputs(folder, preset, teacher, tmp_path):
    out = tmp_path / "run"
    wanted = _taught(preset, teacher, method="pkd")
    ended = run_script("multinli.py", f"--data_dir={folder}", f"--output_dir={out}", *config.to_lines(wanted))
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    result = json.loads((out / "result.json").read_text())
    said = f"test accuracy {result['test_accuracy']:.4f}, mismatched {result['mismatched_accuracy']:.4f}, teacher "
    assert said in ended.stdout
    assert (result["train_examples"], result["test_examples"]) == (18, 9)
    # Of pairs of 4, 5, ... words a sentence, with three marks, those of 7 and more do not fit in 16 tokens.
    assert result["data"]["train"]["truncated_pairs"] == 15 and result["data"]["test"]["truncated_pairs"] == 6
    model = keras.saving.load_model(out / "student.keras", compile=False)
    assert model.name == "bert_2"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sequence_length": 17}, "accepts sequences of at most 16 tokens. Received: 17.*--sequence_length"),
        ({"student": "bert_bsae"}, "'bert_bsae' is neither a network nor a preset"),
        ({"student": "bert_base_cased"}, "without a vocabulary.*--vocabulary"),
        ({"vocabulary": "absent.txt"}, "'absent.txt' does not exist"),
        ({"vocabulary": "SHORT"}, "vocabulary must have 50 tokens, .*bert_2 .* Received: 6 tokens"),
        ({"student_layers": 9}, "`layers` must be from 1 to 4, .*bert. Received: layers=9"),
        ({"method": "pkd", "teacher": "PRESET", "teacher_weights": "TEACHER", "teacher_layers": 1}, "teacher of 1"),
        ({"method": "at", "teacher": "PRESET", "teacher_weights": "TEACHER"}, "no method 'at'"),
        ({"optimizer": "adam"}, "--optimizer=adam is unknown. Expected one of sgd, adamw"),
        ({"schedule": "cosine"}, "--schedule=cosine is unknown. Expected one of steps, linear"),
        ({"lr_warmup_fraction": 1.0}, r"`--lr_warmup_fraction` must be in \[0, 1\). Received: .*=1.0"),
    ],
)
def test_script_with_invalid_settings_writes_nothing(changes, message, preset, teacher, tmp_path, monkeypatch):
    short = tmp_path / "short.txt"
    short.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]) + "\n")
    names = {"SHORT": str(short), "PRESET": preset, "TEACHER": str(teacher)}
    changes = {name: names.get(value, value) for name, value in changes.items()}
    given = types.SimpleNamespace(data_dir="unread", output_dir=str(tmp_path / "run"), resume=False, download=False)
    monkeypatch.setattr(multinli, "flags", types.SimpleNamespace(FLAGS=given))
    monkeypatch.setattr(multinli.data, "multinli", lambda folder, *, length, **config: _splits(length))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        multinli.train(_small(preset, **changes))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_script_prints_an_error_in_one_line(preset, tmp_path):
    absent = run_script(
        "multinli.py",
        "--method=none",
        f"--student={preset}",
        f"--data_dir={tmp_path}",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert absent.returncode == 2
    last = absent.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: ") and "glue/mnli must have a" in last and "--download" in last
    assert not (tmp_path / "run").exists()
