"""Settings of every test: one backend a run (`KERAS_BACKEND`), seeds set, quiet TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # Numbers are compared on the CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As scripts have it, which are compared with functions to the bit.

import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


def pytest_collection_modifyitems(items):
    """Skips by name, and so counts, what needs the TensorFlow backend."""
    if keras.backend.backend() == "tensorflow":
        return
    skip = pytest.mark.skip(reason="needs KERAS_BACKEND=tensorflow")
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(skip)
