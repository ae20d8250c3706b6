"""The judge of saved students, on small runs, beside numbers that are computed without it."""

import csv
import dataclasses
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from absl import flags
from scipy import special, stats
from sklearn import metrics

import evaluate
import multinli
from keras_wsl import Distiller, data, export, losses, models
from keras_wsl.analysis.calibration import calibration
from keras_wsl.models import keras_nlp_backbones
from keras_wsl.training import artifacts, config, runner
from reproduction import reliability_diagram, saved_runs
from tests.common import bert_preset, network, run_script
from tests.train import test_multinli

pytestmark = pytest.mark.eager


SCRIPT = pathlib.Path(evaluate.__file__)
SMALL = config.Config(
    student="tiny", method="none", epochs=1, batch_size=32, decay_epochs=(), max_train_examples=96, learning_rate=0.02
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run on labels, and one that it taught, on digits."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
        runner.run(SMALL, data.digits(), folder / "labels", verbose=0)
        taught = {"teacher": "tiny", "teacher_weights": str(folder / "labels" / "student.keras")}
        wanted = dataclasses.replace(
            SMALL, method="kd", seed=1, max_train_examples=64, validation_examples=20, **taught
        )
        runner.run(wanted, data.digits(), folder / "kd", verbose=0)
    return folder


def _values(out, **given):
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--output_dir={out}", *(f"--{name}={value}" for name, value in given.items())])
    return values


def _judge(out, *paths, **given):
    return evaluate.evaluate([str(path) for path in paths], _values(out, **given))


def _logits(path, part):
    """A network's logits of some digits, normalized by hand."""
    inputs = (part.images / 255 - np.array(part.mean)) / np.array(part.std)
    return keras.saving.load_model(path, compile=False).predict(inputs.astype("float32"), verbose=0)


def _expected(labels, logits, teacher_logits=None):
    """The table's numbers, from SciPy, scikit-learn and a loop over the bins."""
    p = special.softmax(logits.astype("float64"), axis=-1)
    confidence, right = p.max(-1), p.argmax(-1) == labels
    ece = 0.0
    for m in range(15):
        inside = (m / 15 < confidence) & (confidence <= (m + 1) / 15)
        ece += abs(right[inside].sum() - confidence[inside].sum()) / len(labels)
    found = {
        "examples": len(labels),
        "accuracy": right.mean(),
        "top_5_accuracy": metrics.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(10)),
        "mean_confidence": confidence.mean(),
        "ece": ece,
        "nll": metrics.log_loss(labels, p, labels=np.arange(10)),
        "brier": np.mean(np.sum((p - np.eye(10)[labels]) ** 2, axis=-1)),
    }
    if teacher_logits is not None:
        q = special.softmax(teacher_logits.astype("float64"), axis=-1)
        same, taught = p.argmax(-1) == q.argmax(-1), q.argmax(-1) == labels
        found |= {
            "top1_agreement": same.mean(),
            "mean_total_variation": 0.5 * np.abs(p - q).sum(-1).mean(),
            "kl": np.mean([stats.entropy(a, b) for a, b in zip(q, p)]),
            "teacher_accuracy": taught.mean(),
            "agreement_teacher_correct": same[taught].mean(),
            "agreement_teacher_wrong": same[~taught].mean(),
        }
        # At temperature 1, |q_y - p_y - (q_y - 1)| > |q_y - 1|: the student gives the label more than the teacher.
        rows = np.arange(len(labels))
        regularizing = p[rows, labels] > q[rows, labels]
        found |= {
            "regularization_sample_rate": regularizing.mean(),
            "regularization_rate_student_above_teacher": regularizing.mean(),
            "regularization_rate_teacher_correct": regularizing[taught].mean(),
            "regularization_rate_teacher_wrong": regularizing[~taught].mean(),
        }
    return found


def _assert_row(row, expected):
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-5), name


def test_runs_from_the_command_line(runs, tmp_path):
    out = tmp_path / "judged"
    ended = run_script("evaluate.py", f"--output_dir={out}", "--split=test,train", runs / "labels", runs / "kd")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert sorted(path.name for path in out.iterdir()) == ["evaluate.csv", "evaluate.md", "reliability.png"]
    with open(out / "evaluate.csv", newline="") as file:
        rows = {(row["student"], row["split"]): row for row in csv.DictReader(file)}
    assert list(rows) == [("labels", "test"), ("labels", "train"), ("kd", "test"), ("kd", "train")]
    test, train = data.digits().test, data.digits().train
    # What the runs trained on: kd's 64 are of those that were not held out.
    parts = {
        "labels": train.stratified_subset(96, seed=0),
        "kd": train.stratified_split(20, seed=1)[0].stratified_subset(64, seed=1),
    }
    for name, taught in (("labels", False), ("kd", True)):
        for split, part in (("test", test), ("train", parts[name])):
            logits = [_logits(runs / run / "student.keras", part) for run in (name, "labels")[: 1 + taught]]
            _assert_row(rows[name, split], _expected(part.labels, *logits))
            assert (rows[name, split]["top1_agreement"] != "") == taught
        result = json.loads((runs / name / "result.json").read_text())
        assert float(rows[name, "test"]["accuracy"]) == pytest.approx(result["test_accuracy"])
        assert rows[name, "test"]["method"] == result["method"]
        assert rows[name, "test"]["teacher"] == ("tiny" if taught else "")
    accuracy, kl = float(rows["kd", "test"]["accuracy"]), float(rows["kd", "test"]["kl"])
    assert f"kd, test: accuracy {accuracy:.4f}, ECE " in ended.stdout
    table = [line for line in (out / "evaluate.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 6 and table[0].startswith("| student | split | network | method | seed | teacher | examples |")
    assert f" {accuracy:.4f} |" in table[4] and f" {kl:.4f} |" in table[4]
    assert (out / "reliability.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_files_are_judged_as_their_run_is(runs, tmp_path):
    student = keras.saving.load_model(runs / "kd" / "student.keras", compile=False)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        models.save_weights(student, tmp_path / folder / "kd.weights.h5", dtype="float32")
    paths = [tmp_path / "one" / "kd.weights.h5", tmp_path / "two" / "kd.weights.h5", runs / "kd" / "student.keras"]
    teacher = {"teacher_weights": runs / "labels" / "student.keras"}
    (run,) = _judge(tmp_path / "run", runs / "kd", temperature=4)
    rows = _judge(tmp_path / "files", *paths, data="digits", student="tiny", temperature=4, **teacher)
    assert [row["student"] for row in rows] == [str(paths[0]), str(paths[1]), "student"]
    assert [row["network"] for row in rows] == ["tiny"] * 3 and rows[0]["teacher"] == "student.keras"
    numbers = [{name: value for name, value in row.items() if isinstance(value, float)} for row in (run, *rows)]
    assert len(numbers[0]) == 18
    for other in numbers[1:]:
        assert other == pytest.approx(numbers[0], abs=1e-6)
    logits = [_logits(runs / name / "student.keras", data.digits().test) for name in ("labels", "kd")]
    p, q = (special.softmax(values.astype("float64") / 4, axis=-1) for values in logits)
    assert run["kl"] == pytest.approx(np.mean([stats.entropy(a, b) for a, b in zip(p, q)]), rel=1e-4)


def test_all_training_examples_of_a_file(runs, tmp_path):
    path = runs / "labels" / "student.keras"
    whole, part = (
        _judge(tmp_path, path, data="digits", split="train", **more)[0]["examples"]
        for more in ({}, {"max_train_examples": 30})
    )
    assert (whole, part) == (len(data.digits().train), 30)


def test_the_student_of_a_distiller(runs, tmp_path):
    student = keras.saving.load_model(runs / "kd" / "student.keras", compile=False)
    teacher = keras.saving.load_model(runs / "labels" / "student.keras", compile=False)
    distiller = Distiller(teacher, student, losses.KD())
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.save(tmp_path / "distiller.keras")
    (row,) = _judge(tmp_path / "out", tmp_path / "distiller.keras", data="digits")
    (own,) = _judge(tmp_path / "own", runs / "kd", teacher="none")
    assert row["nll"] == pytest.approx(own["nll"]) and row["network"] == own["network"]
    assert "top1_agreement" not in own and own["teacher"] is None


def test_a_teacher_is_asked_once(runs, tmp_path, monkeypatch):
    asked = []
    logits_of = evaluate.compute_labels_and_logits
    monkeypatch.setattr(evaluate, "compute_labels_and_logits", lambda *args: asked.append(args[1]) or logits_of(*args))
    shutil.copytree(runs / "kd", tmp_path / "again")
    rows = _judge(tmp_path / "out", runs / "kd", tmp_path / "again")
    assert len(asked) == 3
    assert {**rows[0], "student": "again"} == rows[1]


def _fake_run(folder, wanted, model, test_examples):
    """A folder as a run leaves it, of a network that was not trained."""
    artifacts.open_run_directory(folder, wanted, resume=False)
    export.save_keras(model, folder / "student.keras")
    artifacts.write_json(folder / "result.json", {"method": wanted.method, "seed": 0, "test_examples": test_examples})
    artifacts.write_csv(folder / "epochs.csv", [{"epoch": 1}])
    return folder


def test_a_run_on_image_files(tmp_path):
    from PIL import Image

    generator, pixels = np.random.default_rng(0), []
    for part in ("train", "val"):
        for label in range(6):
            place = tmp_path / "images" / part / f"n{label}"
            place.mkdir(parents=True)
            pixels.append(generator.integers(0, 256, (32, 32, 3)).astype("uint8"))
            Image.fromarray(pixels[-1]).save(place / "image.png")
    wanted = config.ImageNetConfig(student="tiny", method="none", image_size=32, resize=32)
    model = models.build("tiny", 6, input_shape=(32, 32, 3))
    run = _fake_run(tmp_path / "run", wanted, model, 6)
    (row,) = _judge(tmp_path / "out", run, data_dir=tmp_path / "images")
    test = data.imagenet(tmp_path / "images", image_size=32, resize=32).test
    logits = model.predict(test.normalize(np.stack(pixels[6:]).astype("float32")), verbose=0)
    assert row["nll"] == pytest.approx(metrics.log_loss(range(6), special.softmax(logits, axis=-1)), rel=1e-4)
    assert row["top_5_accuracy"] == metrics.top_k_accuracy_score(range(6), logits, k=5)
    with pytest.raises(ValueError, match="inputs of shape .32, 32, 3.. Received: examples of shape .24, 24, 3."):
        _judge(tmp_path / "out", run, data_dir=tmp_path / "images", image_size=24)


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """A run on sentence pairs, which has a teacher of all four layers."""
    monkeypatch.setattr(multinli.data, "multinli", lambda folder, *, length, **config: test_multinli._splits(length))
    preset = bert_preset(tmp_path / "bert")
    models.save_weights(keras_nlp_backbones.build(preset), tmp_path / "teacher.weights.h5", dtype="float32")
    wanted = config.MultiNLIConfig(
        student=preset,
        student_layers=2,
        sequence_length=16,
        method="kd",
        teacher=preset,
        teacher_weights=str(tmp_path / "teacher.weights.h5"),
    )
    return _fake_run(tmp_path / "run", wanted, keras_nlp_backbones.build(preset, layers=2), 12)


@pytest.mark.slow
def test_a_run_on_sentences(sentences, tmp_path):
    rows = _judge(tmp_path / "out", sentences, split="test,mismatched")
    for row, pairs in zip(rows, test_multinli._splits()[1:]):
        student = keras.saving.load_model(sentences / "student.keras", compile=False)
        teacher = keras_nlp_backbones.build(str(tmp_path / "bert"), weights=tmp_path / "teacher.weights.h5")
        logits, teacher_logits = (
            model.predict(pairs.inputs(np.arange(len(pairs))), verbose=0) for model in (student, teacher)
        )
        assert row["examples"] == len(pairs) and "top_5_accuracy" not in row and row["teacher"] == "bert"
        assert row["top1_agreement"] == np.mean(logits.argmax(-1) == teacher_logits.argmax(-1))
        p, q = (special.softmax(values.astype("float64"), axis=-1) for values in (teacher_logits, logits))
        assert row["kl"] == pytest.approx(np.mean([stats.entropy(a, b) for a, b in zip(p, q)]), rel=1e-3)


def test_sentences_of_another_vocabulary(sentences, tmp_path):
    (tmp_path / "short.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]) + "\n")
    with pytest.raises(ValueError, match="vocabulary must have 50 tokens, as the weights of bert_2 do. Received: 6"):
        _judge(tmp_path / "out", sentences, vocabulary=tmp_path / "short.txt")


@pytest.mark.parametrize(
    "path, given, message",
    [
        ("absent.keras", {"data": "digits"}, "absent.keras does not exist. Expected the directory of a run"),
        ("kd/student.keras", {}, "does not record its data set. Pass --data, one of digits, cifar100"),
        ("kd/student.keras", {"data": "mnist"}, "--data must be one of digits, .*Received: --data=mnist"),
        ("kd/epochs.csv", {"data": "digits"}, "epochs.csv is not a network"),
        ("tiny.weights.h5", {"data": "digits"}, "has only weights. Pass their network by --student"),
        ("tiny.weights.h5", {"data": "digits", "student": "resnet14"}, "does not match resnet14"),
        ("torn.keras", {"data": "digits"}, "not a complete"),
        ("unfinished", {}, "holds no finished run"),
        ("kd", {"data": "imagenet"}, "is a run of Config, which does not fit --data=imagenet"),
        (
            "kd",
            {"data": "cifar100", "data_dir": "IMAGES"},
            "evaluated on 449 test examples. Received: .* of 30",
        ),
        ("kd", {"split": "mismatched"}, "--split must be of train, test for digits. Received: --split=mismatched"),
        ("kd", {"split": ""}, "--split is empty"),
        ("kd", {"temperature": 0}, "`--temperature` must be a positive number"),
        ("kd", {"image_size": 32}, "--image_size does not apply to this data set"),
        ("kd", {"teacher_weights": "absent.keras"}, "The teacher's file absent.keras does not exist"),
        ("kd/student.keras", {"data": "digits", "teacher": "tiny"}, "--teacher=tiny has no weights"),
        ("kd/student.keras", {"data": "digits", "teacher_weights": "TINY"}, "Pass their network by --teacher"),
        ("retaught", {}, "is not the teacher of .*SHA-256"),
        ("newer", {}, "run.flags must contain only flags of a Config. Received: .*invented"),
        ("classes.keras", {"data": "digits"}, r"outputs of shape \(None, 5\). Received: examples of 10 classes"),
        ("kd/student.keras", {"data": "cifar100", "data_dir": "IMAGES"}, r"inputs of shape \(8, 8, 1\).*\(8, 8, 3\)"),
        ("softmax.keras", {"data": "digits"}, "must be logits"),
        ("nan.keras", {"data": "digits"}, "must be finite"),
    ],
)
def test_bad_input_writes_nothing(path, given, message, odd, tmp_path):
    given = {
        name: {"IMAGES": odd / "images.npz", "TINY": odd / "tiny.weights.h5"}.get(v, v) for name, v in given.items()
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        _judge(tmp_path / "out", odd / path, **given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def odd(runs, tmp_path_factory):
    """The runs, and files and folders with which something is wrong."""
    from tests.common import bright_splits

    folder = tmp_path_factory.mktemp("odd") / "runs"
    shutil.copytree(runs, folder)
    data.save_npz(bright_splits(30), folder / "images.npz")
    models.save_weights(models.build("tiny", 10, input_shape=(8, 8, 1)), folder / "tiny.weights.h5")
    (folder / "torn.keras").write_bytes((runs / "kd" / "student.keras").read_bytes()[:1000])
    for name in ("unfinished", "retaught", "newer"):
        shutil.copytree(runs / "kd", folder / name)
    (folder / "unfinished" / "result.json").unlink()
    result = json.loads((folder / "retaught" / "result.json").read_text())
    artifacts.write_json(folder / "retaught" / "result.json", {**result, "teacher_sha256": "0" * 64})
    with open(folder / "newer" / "run.flags", "a") as file:
        file.write("--invented=1\n")
    models.build("tiny", 5, input_shape=(8, 8, 1)).save(folder / "classes.keras")
    image = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(image)
    keras.Model(image, keras.layers.Dense(10, activation="softmax")(flat)).save(folder / "softmax.keras")
    nan = keras.initializers.Constant(np.nan)
    keras.Model(image, keras.layers.Dense(10, bias_initializer=nan)(flat)).save(folder / "nan.keras")
    return folder


def test_several_data_sets_and_no_folder(runs, tmp_path):
    wanted = config.ImageNetConfig(student="tiny", method="none")
    other = _fake_run(tmp_path / "run", wanted, models.build("tiny", 6), 6)
    with pytest.raises(ValueError, match="must be of one data set. Received: digits, imagenet"):
        _judge(tmp_path / "out", runs / "kd", other)
    with pytest.raises(ValueError, match="--output_dir is missing"):
        _judge("", runs / "kd")


def test_errors_of_the_command_are_one_line(tmp_path):
    ended = run_script("evaluate.py", f"--output_dir={tmp_path / 'out'}", tmp_path / "absent")
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].endswith("or a .weights.h5 file.")


def test_networks_without_inputs_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="own.keras must have a functional or sequential network. Received: a Own"):
        evaluate._check_fits("own.keras", Own(), data.digits().test)
    with pytest.raises(ValueError, match=r"inputs of shape \(6,\)"):
        evaluate._check_fits("dense.keras", network("dense"), data.digits().test)


def test_bars_show_the_table(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    found = calibration(generator.integers(0, 4, 300), generator.normal(size=(300, 4)) * 2, bins=10)
    figures = []
    monkeypatch.setattr(reliability_diagram.plt, "close", figures.append)
    reliability_diagram.plot({name: found for name in "abcde"}, tmp_path / "reliability.png")
    (figure,) = figures
    drawn = [axis for axis in figure.axes if axis.axison]
    assert len(figure.axes) == 16 and len(drawn) == 10  # Five pairs on two lines of four.
    upper = next(axis for axis in drawn if axis.get_title().startswith("b\n"))
    assert upper.get_title() == f"b\naccuracy {found['accuracy']:.1%}, ECE {found['ece']:.3f}"
    both, under, over = (np.array([bar.get_height() for bar in bars]) for bars in upper.containers)
    np.testing.assert_allclose(both + under, found["reliability"]["accuracy"])
    np.testing.assert_allclose(both + over, found["reliability"]["confidence"])
    np.testing.assert_allclose([bar.get_height() for bar in drawn[1 + 3].containers[0]], found["reliability"]["count"])


def test_every_data_set_has_its_script():
    assert list(saved_runs.DATASETS) == ["digits", "cifar100", "imagenet", "multinli"]
    for dataset in saved_runs.DATASETS.values():
        assert set(dataset.data_settings) <= {field.name for field in dataclasses.fields(dataset.config)}
