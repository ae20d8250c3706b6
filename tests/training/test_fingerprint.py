"""Contents of data and files."""

import dataclasses
import os

import pytest

from keras_wsl.training import config, fingerprint


def test_contents_of_a_directory_do_not_depend_on_its_path(tmp_path):
    preset = tmp_path / "preset"
    (preset / "assets").mkdir(parents=True)
    (preset / "assets" / "vocabulary.txt").write_text("a\nb\n")
    settings = config.MultiNLIConfig(
        student=str(preset), method="none", vocabulary=str(preset / "assets" / "vocabulary.txt")
    )
    found = fingerprint.contents(settings, {})
    assert set(found) == {"student", "vocabulary"}
    preset.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    again = dataclasses.replace(settings, student=str(moved), vocabulary=str(moved / "assets" / "vocabulary.txt"))
    assert fingerprint.identity(settings, found) == fingerprint.identity(again, fingerprint.contents(again, {}))
    (moved / "assets" / "vocabulary.txt").write_text("a\nc\n")
    assert set(fingerprint.contents(again, {}).values()).isdisjoint(found.values())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe must be a regular file. Received: it is a named pipe"):
        fingerprint.contents(dataclasses.replace(settings, vocabulary=str(tmp_path / "pipe")), {})
