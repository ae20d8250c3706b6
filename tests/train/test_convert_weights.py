"""convert_weights.py."""

import keras
import numpy as np
import pytest

from keras_wsl import files, models
from keras_wsl.models.convert_torchvision import convert
from tests.common import run_script
from tests.models.test_torchvision import mobilenet_shapes, random_state


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "mobilenet.npz"
    np.savez(path, **random_state(mobilenet_shapes(7)))
    return path


needs_name = pytest.mark.skipif("imagenet_mobilenet_v1" not in models.names(), reason="not a registered network")


@needs_name
def test_script_writes_weights_that_build_reads(source, tmp_path):
    out = tmp_path / "a.weights.h5"
    result = run_script(
        "convert_weights.py",
        "--network=imagenet_mobilenet_v1",
        f"--source={source}",
        f"--output_file={out}",
        "--classes=7",
    )
    assert result.returncode == 0, result.stderr
    assert files.sha256(out) in result.stdout and "3,214,151 parameters" in result.stdout
    read = models.build("imagenet_mobilenet_v1", 7, out, input_shape=(32, 32, 3))
    expected = models.build("imagenet_mobilenet_v1", 7, input_shape=(32, 32, 3))
    convert(random_state(mobilenet_shapes(7)), expected)
    x = np.ones((1, 32, 32, 3), "float32")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(model(x)) for model in (read, expected)))


def test_script_prints_an_error_in_one_line(source, tmp_path):
    out = tmp_path / "a.weights.h5"
    result = run_script("convert_weights.py", "--network=resnet8", f"--source={source}", f"--output_file={out}")
    assert result.returncode == 2 and not out.exists()
    assert "ValueError: The arrays do not match resnet8: 'conv1.weight'" in result.stderr.splitlines()[-1]
