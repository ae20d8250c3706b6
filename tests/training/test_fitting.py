"""The pretraining stage, and losses that are not finite."""

import keras
import numpy as np
import pytest

from keras_wsl import callbacks, data, models
from keras_wsl.training import artifacts, build, build_losses, fitting, recipes, runner
from tests.common import bright_splits
from tests.training.conftest import splits_of_90, tiny_config, with_teacher

pytestmark = pytest.mark.eager


@pytest.mark.slow
def test_pretrain_ab_initializes_the_student(tiny_teacher, tmp_path):
    settings = tiny_config(tiny_teacher, method="ab")
    keras.utils.set_random_seed(settings.seed)
    before = {v.path: np.array(v) for v in _student(settings).variables}
    result = runner.run(settings, bright_splits(96), tmp_path / "run", verbose=0)
    stage = artifacts.read_csv(tmp_path / "run" / "first_stage.csv")
    assert len(stage) == 2 and stage[1]["ab"] < stage[0]["ab"] and stage[0]["loss"] == pytest.approx(stage[0]["ab"])
    main = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    assert "ab" not in main and main["loss"] == pytest.approx(main["student_loss"])
    assert result["pretrain_epochs"] == 2 and result["teacher_accuracy"] is not None
    # The head is not trained in the pretraining stage.
    after = _stage_weights(settings, tmp_path / "stage")
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not any(path.startswith("logits/") for path in moved)
    assert any(path.startswith("block3_unit0_conv1/") for path in moved)
    assert any(path.endswith("moving_mean") for path in moved)


def _student(settings):
    return models.build(settings.student, 3, input_shape=(8, 8, 3))


def _stage_weights(settings, out):
    """Return the student's variables after the pretraining stage."""
    train, recipe = bright_splits(96).train, recipes.METHODS[settings.method]
    teacher = models.build("tiny", 3, weights=settings.teacher_weights, input_shape=(8, 8, 3))
    keras.utils.set_random_seed(settings.seed)
    student = _student(settings)
    trainable = [layer.trainable for layer in student.layers]
    out.mkdir()
    model = build.build_pretraining_distiller(
        settings, recipe, teacher, student, build_losses.build_stage_loss(settings), train
    )
    fitting.pretrain(model, recipe.stage, [], settings, train, out, backup_kwargs={}, verbose=0)
    assert [layer.trainable for layer in student.layers] == trainable
    return {v.path: np.array(v) for v in student.variables}


@pytest.mark.traced
def test_pretrain_ft_trains_the_paraphraser_and_freezes_it(tiny_teacher, tmp_path):
    settings = tiny_config(tiny_teacher, method="ft", pretrain_epochs=8)
    train, recipe = bright_splits(96).train, recipes.METHODS["ft"]
    network = models.build("tiny", 3, weights=str(tiny_teacher), input_shape=(8, 8, 3))
    student = _student(settings)
    before = [np.array(v) for v in student.variables]
    (main,) = build_losses.build_main_losses(settings, train)
    distiller = build.build_distiller(settings, recipe, network, student, [main], train)
    loss = build_losses.build_stage_loss(settings)
    model = build.build_pretraining_distiller(settings, recipe, network, student, loss, train)
    fitting.pretrain(model, recipe.stage, [main], settings, train, tmp_path, backup_kwargs={}, verbose=0)
    rows = artifacts.read_csv(tmp_path / "first_stage.csv")
    assert rows[-1]["paraphrase"] < rows[0]["paraphrase"]
    for one, other in zip(before, student.variables):
        np.testing.assert_array_equal(one, other)  # BatchNorm's statistics too.
    learned = loss.paraphraser.get_weights()
    for one, other in zip(learned, main.paraphraser.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    images, targets = next(iter(data.train_batches(train, seed=0, batch_size=32)))
    translator = [np.array(v) for v in main.translator.trainable_variables]
    distiller.train_on_batch(images, targets)
    for one, other in zip(learned, main.paraphraser.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert all(not np.array_equal(a, b) for a, b in zip(translator, main.translator.trainable_variables))


class _Stop(Exception):
    pass


@pytest.mark.slow
def test_pretrain_resumes_in_each_stage(tiny_teacher, tmp_path, monkeypatch):
    settings = tiny_config(tiny_teacher, method="ft", backup_every_steps=1, pretrain_epochs=1, deterministic=True)
    runner.run(settings, bright_splits(96), tmp_path / "whole", verbose=0)
    save, saves = callbacks.ExactBackupAndRestore._save, {"first_stage": 0, "backups": 0}

    def stopping(self, *args, **kwargs):
        save(self, *args, **kwargs)
        saves[self.directory.name] += 1
        if saves[self.directory.name] == 2:
            raise _Stop

    monkeypatch.setattr(callbacks.ExactBackupAndRestore, "_save", stopping)
    for resume in (False, True):  # Once in each stage.
        with pytest.raises(_Stop):
            runner.run(settings, bright_splits(96), tmp_path / "stopped", resume=resume, verbose=0)
        assert (saves["backups"] > 0) is resume
    monkeypatch.undo()
    monkeypatch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
    runner.run(settings, bright_splits(96), tmp_path / "stopped", resume=True, verbose=0)
    whole, stopped = (
        keras.saving.load_model(tmp_path / name / "student.keras", compile=False).get_weights()
        for name in ("whole", "stopped")
    )
    for one, other in zip(whole, stopped, strict=True):
        np.testing.assert_array_equal(one, other)
    for table in ("epochs.csv", "first_stage.csv"):
        assert (tmp_path / "whole" / table).read_text() == (tmp_path / "stopped" / table).read_text()


@pytest.mark.traced
@pytest.mark.tensorflow  # Elsewhere `ExactBackupAndRestore` raises first, because the weights are not finite.
def test_fit_names_the_examples_of_a_nonfinite_loss(teacher, tmp_path):
    settings = with_teacher(teacher, learning_rate=1e30, epochs=3)
    with pytest.raises(callbacks.NonFiniteLossError, match=r"student_loss=nan|wsl=nan") as caught:
        runner.run(settings, splits_of_90(), tmp_path / "run", verbose=0)
    first, last = caught.value.examples
    assert f"step {caught.value.step} among examples {first} to {last} of the epoch" in str(caught.value)
    batches = data.train_batches(
        splits_of_90().train, seed=0, batch_size=32, initial_position=(caught.value.epoch - 1, first // 32)
    )
    numbers = ", ".join(str(number) for number in np.asarray(next(iter(batches))[1]["index"]))
    assert last - first + 1 == numbers.count(",") + 1
    assert f"the numbers {numbers}, from 0 on." in str(caught.value)
    epochs = {int(path.name[:6]) for path in (tmp_path / "run" / "backups").glob("*.backup")}
    assert max(epochs) == caught.value.epoch - 1
    assert not (tmp_path / "run" / "student.keras").exists()
