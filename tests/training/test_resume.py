"""Resume: what is accepted, refused and written again; and signals that end a run."""

import dataclasses
import shutil
import signal
import warnings

import numpy as np
import pytest

from benchmarks.fault_injection import differences
from keras_wsl import callbacks, models
from keras_wsl.files import sha256
from keras_wsl.training import artifacts, cli, config, epoch_log, fingerprint, runner
from tests.common import bright_splits

pytestmark = pytest.mark.usefixtures("default_signals")
EXPORTS = True  # See tests/train/conftest.py.


SMALL = config.Config(student="resnet8", method="none", epochs=1, batch_size=32, decay_epochs=())


@pytest.fixture(scope="module", autouse=True)
def _without_saved_model():
    """Leave out the SavedModel, which takes longer than the runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights of a teacher and of a student."""
    directory = tmp_path_factory.mktemp("files")
    for name in ("teacher", "student", "other"):
        models.save_weights(models.build("resnet8", 3, input_shape=(8, 8, 3)), directory / f"{name}.weights.h5")
    return directory


def _settings(files, **changes):
    paths = {f"{name}_weights": str(files / f"{name}.weights.h5") for name in ("teacher", "student")}
    return dataclasses.replace(SMALL, **{"method": "wsl", "teacher": "resnet8", **paths, **changes})


def _run(settings, out, splits=None, **options):
    return runner.run(settings, splits or bright_splits(64), out, verbose=0, **options)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    _run(_settings(files), out, source="bright.npz")
    return out


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _state(directory):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in directory.rglob("*")}


def _changed(part, **changes):
    splits = bright_splits(64)
    examples = getattr(splits, part)
    rows = {name: change(np.array(getattr(examples, name))) for name, change in changes.items()}
    return splits._replace(**{part: dataclasses.replace(examples, **rows)})


def _other_first(array):
    array.flat[0] = (array.flat[0] + 1) % 3
    return array


OTHER_DATA = {
    "train.sha256: pixel": _changed("train", images=_other_first),
    "train.sha256: label": _changed("train", labels=_other_first),
    "train.sha256: number": _changed("train", index=lambda index: index + 1),
    "train.preprocessing: mean": _changed("train", mean=lambda mean: tuple(mean / 2)),
    "test.sha256: label": _changed("test", labels=_other_first),
    "test.examples: fewer": bright_splits(64, test=29),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_resume_refuses_other_data_by_name(name, files, copy):
    before = _state(copy)
    with pytest.raises(ValueError, match=rf"another run\..* data.{name.partition(':')[0]}: .* in run.flags, .* now"):
        _run(_settings(files), copy, OTHER_DATA[name], resume=True)
    path = copy / "run.flags"  # Without its comments the backup still knows.
    path.write_text("".join(f"{line}\n" for line in config.read_lines(path)))
    with pytest.raises(ValueError, match=rf"another run\..* data.{name.partition(':')[0]}: .* in the backup, .* now"):
        _run(_settings(files), copy, OTHER_DATA[name], resume=True)
    assert {file: state for file, state in _state(copy).items() if file != path} == {
        file: state for file, state in before.items() if file != path
    }


@pytest.mark.parametrize("setting", ["teacher_weights", "student_weights"])
def test_resume_refuses_other_weights_by_name(setting, files, copy):
    before, other = _state(copy), _settings(files, **{setting: str(files / "other.weights.h5")})
    with pytest.raises(ValueError, match=f"another run. --{setting}: 'SHA-256 .* in run.flags, 'SHA-256 .* now"):
        _run(other, copy, resume=True)
    assert _state(copy) == before


def test_resume_refuses_edited_settings(files, copy):
    path = copy / "run.flags"
    edited = path.read_text().replace("--learning_rate=0.05\n", "") + "--learning_rate=0.1\n"
    path.write_text(edited)
    with pytest.raises(ValueError, match="another run. --learning_rate: 0.05 in the backup, 0.1 now"):
        _run(_settings(files, learning_rate=0.1), copy, resume=True, source="bright.npz")
    assert path.read_text() == edited  # Also if the lines have another order than a run writes.


def test_resume_accepts_moved_files(files, copy, tmp_path):
    moved = shutil.copytree(files, tmp_path / "moved")
    _run(_settings(moved), copy, resume=True, source="moved.npz")
    text = (copy / "run.flags").read_text()
    assert f"--teacher_weights={moved}/teacher.weights.h5\n" in text and '# data: "moved.npz"\n' in text
    assert str(files) not in text and config.read(copy / "run.flags") == _settings(moved)


def test_run_records_the_data(files, finished):
    examples = bright_splits(64)
    contents = fingerprint.contents(_settings(files), {"train": examples.train})
    text, result = (finished / "run.flags").read_text(), artifacts.json.loads((finished / "result.json").read_text())
    assert '# data: "bright.npz"\n' in text and "# data.train.examples: 64\n" in text
    assert f'# data.train.sha256: "{contents["data.train.sha256"]}"\n' in text
    assert result["data_source"] == "bright.npz" and contents.items() <= result["contents"].items()
    assert result["contents"]["student_weights"] == sha256(files / "student.weights.h5")


def test_resume_rewrites_damaged_files_of_a_finished_run(files, finished, copy):
    names = ("epochs.csv", "result.json", "curves.png", "student.keras", "tensorboard/regularization_samples.csv")
    for damage in (lambda path: path.write_bytes(b"\xff\0garbage"), lambda path: path.unlink()):
        for name in names:
            damage(copy / name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*regularization_samples.csv is damaged")
            _run(_settings(files), copy, resume=True)
        assert differences(finished, copy) == []
        assert (copy / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_resume_refuses_a_trained_run_without_backups(files, copy, tmp_path, capsys):
    shutil.rmtree(copy / "backups")
    for name in ("epochs.csv", "student.keras", "result.json"):
        with pytest.raises(ValueError, match=f"which has written .*{name}. Received: no backup"):
            _run(_settings(files), copy, resume=True)
        (copy / name).unlink()
    artifacts.open_run_directory(tmp_path / "killed", SMALL, resume=False)  # Before its first backup.
    _run(SMALL, tmp_path / "killed", resume=True)
    assert "killed holds no backup: the run starts from its first step." in capsys.readouterr().out


def test_resume_with_other_threads_warns_that_bits_may_differ(tmp_path, monkeypatch):
    interrupt = _signal_after(monkeypatch, signal.SIGTERM)
    with interrupt, pytest.raises(callbacks.PreemptedError):
        _run(SMALL, tmp_path / "run")
    monkeypatch.setattr(artifacts, "_threads", lambda: 3)
    with pytest.warns(UserWarning, match="threads: .* in the backup, 3 now. The run may not end in the same bits"):
        _run(SMALL, tmp_path / "run", resume=True)


class _signal_after:
    """While it is entered, the second step of a training raises a signal."""

    def __init__(self, monkeypatch, number, times=1):
        self.number, self.times, self.patch = number, times, monkeypatch

    def __enter__(self):
        steps, before = [], epoch_log.EpochLog.on_train_batch_end

        def on_train_batch_end(epochs, batch, logs=None):
            before(epochs, batch, logs)
            steps.append(batch)
            for _ in range(self.times if len(steps) == 2 else 0):
                signal.raise_signal(self.number)

        self.context = self.patch.context()
        self.context.__enter__().setattr(epoch_log.EpochLog, "on_train_batch_end", on_train_batch_end)

    def __exit__(self, *error):
        self.context.__exit__(*error)


@pytest.mark.parametrize("name, status, steps", [("SIGINT", 130, 3), ("SIGHUP", 129, 3), ("SIGTERM", 143, 2)])
def test_signal_saves_the_run_and_prints_one_line(name, status, steps, tmp_path, monkeypatch, capsys):
    """Also in the last step, after which nothing is left to train: results are then written by --resume."""
    splits = bright_splits(32 * steps)
    with _signal_after(monkeypatch, signal.Signals[name]):
        assert cli.status(lambda: _run(SMALL, tmp_path / "run", splits)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} was received in " in line and line.endswith("Pass --resume.")
    assert not (tmp_path / "run" / "result.json").exists()
    (saved,) = {max(path.stem for path in (tmp_path / "run" / "backups").glob("*.backup"))}
    assert saved == ("000000-00000002" if steps == 3 else "000001-00000000")
    _run(SMALL, tmp_path / "run", splits, resume=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_second_sigint_ends_the_run(tmp_path, monkeypatch, capsys):
    with _signal_after(monkeypatch, signal.SIGINT, times=2):
        assert cli.status(lambda: _run(SMALL, tmp_path / "run", bright_splits(96))) == 130
    assert capsys.readouterr().err == "Interrupted by SIGINT. Files that were written before are complete.\n"
    assert [path.stem for path in (tmp_path / "run" / "backups").iterdir()] == ["000000-00000000"]
