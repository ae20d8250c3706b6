"""The README and the guide: their names, flags, code and commands exist and work."""

import os
import pathlib
import re
import sys

import keras
import numpy as np
import pytest

import keras_wsl
from keras_wsl.training import config
from tests.common import hard_loss, run_child

ROOT = pathlib.Path(__file__).parent.parent
README, GUIDE = ((ROOT / path).read_text() for path in ("README.md", "docs/guide.md"))
PAGES = README + GUIDE


def test_names_exist():
    names = set(re.findall(r"(?<![\w/-])keras_wsl((?:\.\w+)+)", PAGES))
    assert {".losses.WSL", ".Distiller", ".export.export_saved_model"} <= names
    for name in names:
        found = keras_wsl
        for part in name.strip(".").split("."):
            found = getattr(found, part)


def test_readme_loss_trains():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class Hint" in block]
    scope = {"keras": keras, "keras_wsl": keras_wsl}
    exec(code, scope)
    teacher, student = (keras_wsl.models.build(name, 3, input_shape=(8, 8, 3)) for name in ("wrn_16_2", "wrn_16_1"))
    hint = scope["Hint"](weight=2.0)
    distiller = keras_wsl.Distiller(teacher, student, [hint, "wsl"])
    distiller.compile(keras_wsl.optimizers.SGD(0.01), hard_loss())
    before = keras.ops.convert_to_numpy(hint.regressor.kernel)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    history = distiller.fit(images, np.arange(8) % 3, verbose=0).history
    assert {"hint", "wsl", "distillation_loss"} <= set(history)
    assert np.abs(keras.ops.convert_to_numpy(hint.regressor.kernel) - before).max() > 0


def test_guide_script_runs(tmp_path):
    """The guide's `mine.py`, on images that this test makes, with all flags and outputs of the others."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S) if "# mine.py" in block]
    (tmp_path / "mine.py").write_text(code)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype("uint8")
    labels = np.arange(40) % 2
    parts = {"train_images": images, "train_labels": labels, "test_images": images[:8], "test_labels": labels[:8]}
    np.savez(tmp_path / "mine.npz", **parts)
    command = [sys.executable, "mine.py", "--student=tiny", "--method=none", "--epochs=1", "--output_dir=run"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "train")])
    done = run_child(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert {"run.flags", "epochs.csv", "result.json", "student.keras"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_flags_and_files_exist():
    from absl import flags

    known = {"flagfile", "help", "logdir"}  # absl's and TensorBoard's.
    for script in (ROOT / "train").rglob("*.py"):
        known |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', script.read_text()))
    for kind in (config.Config, config.ImageNetConfig, config.MultiNLIConfig):
        values = flags.FlagValues()
        config.define_flags(values, kind)
        known |= {*values}
    assert set(re.findall(r"(?<![\w-])--(\w+)", PAGES)) <= known
    for path in re.findall(r"(?<![\w/])(?:\.\./)?(train/[\w/.-]+\.(?:py|flags|png|md))", PAGES):
        assert (ROOT / path).exists() or path == "train/mine.py", path


def test_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+) ", README):
        assert f"\n{target}:" in makefile, target


def test_readme_is_short_and_its_quickstart_runs():
    assert len(README.split()) <= 900
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "data.digits()" in block]
    assert len(code.splitlines()) <= 20
    done = run_child([sys.executable, "-c", code.replace("epochs=10", "epochs=1").replace("epochs=5", "epochs=1")])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^accuracy 0\.\d{3}, mean WSL weight 0\.\d\d$", done.stdout, re.M)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "train/README.md", "train/results/README.md"])
def test_links_of_pages_lead_to_files(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target
