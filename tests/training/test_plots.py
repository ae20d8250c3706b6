"""Pictures of runs."""

import pytest

from keras_wsl.training import plots

EXPORTS = True  # See tests/train/conftest.py.


def test_plot_writes_atomically(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    rows = {"run": [{"epoch": 1, "val_accuracy": 0.5}]}
    plots.plot(rows, path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.plot(rows, path)
    assert path.read_bytes() == before and [there.name for there in tmp_path.iterdir()] == ["curves.png"]
